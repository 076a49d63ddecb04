"""Axial rotary positions on a 3D patch grid (Su et al. 2021, arXiv:2104.09864), in patches or in millimetres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

POSITION_UNITS = ("patch", "mm", "box")


def split_pairs(head_dim: int) -> tuple[int, int, int]:
    """Split a head's channel pairs over the axes: thirds, and H, then W take the pairs left over.

    Args:
        head_dim: channels of a head, even and at least 6.

    Returns:
        Pairs for ``(H, W, D)``; no channel stays unrotated. 64 channels give ``(11, 11, 10)``.

    Raises:
        ValueError: an odd width, or too few channels for a pair per axis.
    """
    if head_dim < 6 or head_dim % 2:
        raise ValueError(
            f"heads of {head_dim} channels: rotary positions turn pairs of channels, one per axis at least, and need "
            "an even width of 6 or more. Change embed_dim or num_heads."
        )
    third, rest = divmod(head_dim // 2, 3)
    return third + int(rest > 0), third + int(rest > 1), third


def rotary_table(
    x: Tensor,
    grid: tuple[int, int, int],
    unit: str,
    steps: tuple[float, float, float],
    spacing_mm: Tensor | None,
    pairs: tuple[int, int, int],
    rest: int,
    temperature: float,
    rotate_half: bool,
    offset: int = 0,
    ladder: list[float] | None = None,
    repeated: bool = False,
) -> Tensor:
    """Return sines and cosines of every patch's angles, as timm's ``apply_rot_embed_cat`` takes them.

    Pair k of an axis turns by the patch's position times ``temperature ** (-k / n)``, n being the most pairs that an
    axis has: all axes share one ladder of frequencies, so that a distance means the same along each; an axis with
    fewer pairs does without the slowest.

    Args:
        x: what the patches are of, ``(B, ...)``; its device is taken, and float64 if it has that, else float32.
        grid: patches along ``(H, W, D)``.
        unit: ``"patch"`` counts from ``offset``, ``"mm"`` from the grid's middle, ``"box"`` too, over its size.
        steps: what one patch (for ``"box"``: the whole axis) measures along each axis, in positions.
        spacing_mm: ``(1, 3)`` or ``(B, 3)``, multiplies ``steps``; None does not.
        pairs: channel pairs for ``(H, W, D)``.
        rest: further pairs, which are not rotated.
        temperature: base of the wavelengths.
        rotate_half: pair channel i with i + half the width (as DINOv3 does), not with its neighbour (as EVA-02 does).
        offset: of ``"patch"``: the first patch's number.
        ladder: speeds of an axis' pairs, fastest first, instead of those of ``temperature``.
        repeated: each axis' channels take its ladder twice over, one speed a channel, though neighbours are paired.

    Returns:
        ``(S, 1, N, 2 * width)``, S being 1 or B, D fastest: sines, then cosines, each of a head's width.

    Raises:
        ValueError: as many spacings as there are not samples.
    """
    if spacing_mm is not None and spacing_mm.shape[0] != 1 and spacing_mm.shape[0] != x.shape[0]:
        raise ValueError(
            f"spacing_mm was set for {spacing_mm.shape[0]} samples, but the batch has {x.shape[0]}: call set_spacing "
            "with one row a sample, or with one spacing for all."
        )
    # angles of long axes keep their last digits in float64, which Apple's GPUs do not have
    fine = torch.float32 if x.device.type == "mps" else torch.float64
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    count = max(pairs[0], pairs[1], pairs[2])
    speeds, parts = temperature ** (-torch.arange(count, dtype=fine, device=x.device) / count), []
    if ladder is not None:
        speeds = torch.tensor(ladder, dtype=fine, device=x.device)
    for axis in range(3):
        speed = speeds[: pairs[axis]]
        if repeated:
            speed = torch.cat([speed, speed])
        if axis == 2:
            # at speed 0 a channel stays as it is
            speed = torch.cat([speed, speed.new_zeros(2 * rest if repeated else rest)])
        place = torch.arange(grid[axis], dtype=fine, device=x.device)
        place = place + (float(offset) if unit == "patch" else 0.5 - grid[axis] / 2)
        if unit == "box":
            place = place / grid[axis]
        angle = ((place * steps[axis])[:, None] * speed)[None]
        if spacing_mm is not None:
            angle = angle * spacing_mm[:, axis].to(x.device, fine)[:, None, None]
        shape = [angle.shape[0], 2, 1, 1, 1, speed.shape[0]]
        shape[2 + axis] = grid[axis]
        part = torch.stack([angle.sin(), angle.cos()], 1).to(dtype).reshape(shape)
        parts.append(part.expand(part.shape[0], 2, grid[0], grid[1], grid[2], speed.shape[0]))
    table = torch.cat(parts, -1).flatten(2, 4)
    if not repeated:
        # not repeat_interleave, of which older exporters to ONNX make another size than the one asked for
        table = torch.cat([table, table], -1) if rotate_half else torch.stack([table, table], -1).flatten(-2)
    return table.transpose(1, 2).flatten(2)[:, None]


# A leaf for torch.fx: its loops and branches depend on shapes, which a symbolic trace does not know.
torch.fx.wrap("rotary_table")


def keep_rows(table: Tensor, keep: Tensor) -> Tensor:
    """Return the rows of :func:`rotary_table` for some patches.

    Args:
        table: ``(S, 1, N, C)``, S being 1 or B.
        keep: ``(B, K)`` long, patch numbers.

    Returns:
        ``(B, 1, K, C)``, in the order of ``keep``.
    """
    rows = keep.to(table.device)[:, None, :, None].expand(-1, -1, -1, table.shape[3])
    return table.expand(keep.shape[0], -1, -1, -1).gather(2, rows)


class RotaryPositions3D(nn.Module):
    """Angles by which attention rotates queries and keys, so that their product depends on their distance.

    Axial, as Heo et al. 2024 (arXiv:2403.13298, section 3.1) and EVA-02 have it in 2D: each pair of a head's channels
    turns with one axis. Patches know of each other their distance only, wherever the grid lies. Prefix tokens are not
    rotated: they see every patch at its place from the origin.

    There are no parameters and no buffers (DDP would give every rank the spacing of the first), so a state dict does
    not change.

    Args:
        head_dim: channels of a head.
        unit: ``"patch"``: neighbouring patches are 1 apart on each axis, the first is the origin, as in timm's EVA-02
            and rope ViTs. ``"mm"``: patch centres in mm from the middle of the grid, over ``unit_mm``; it needs the
            voxel spacing (:func:`set_spacing`). ``"box"``: each axis spans 4 pi whatever its size, the middle is the
            origin, as in DINOv3.
        pairs: channel pairs for ``(H, W, D)``; None takes :func:`split_pairs`. 0 leaves an axis out (``(16, 16, 0)``
            is a 2D network's split); pairs that no axis takes, the last ones, are not rotated.
        temperature: base of the wavelengths: the shortest is 2 pi units, the longest nearly ``temperature`` times that.
            100 suits grids of some dozen patches (arXiv:2403.13298).
        rotate_half: pair channel i with i + half the width (as DINOv3 does), not with its neighbour (as EVA-02 does).
        unit_mm: mm in a unit of position; part of what the weights learned, so never to be changed with the spacing.
            16 makes distances the same as in ``"patch"`` for patches of 16 voxels of 1 mm.
        reference: of ``"patch"``: the grid ``(H, W, D)`` as much as which any other spans, as in EVA-02: patch i of n
            is at ``(i + offset) / n * reference``.
        offset: of ``"patch"``: the first patch's number.
        spacing_mm: voxel spacing, as :func:`set_spacing` takes it; it can be set later.
        ladder: speeds of an axis' pairs, fastest first, as many as the most pairs of an axis, for weights that were
            trained with other ones than ``temperature`` gives; a period is 1 over a speed.
        repeated: within an axis the ladder of n speeds is taken twice, a speed a channel, though neighbours are paired,
            as V-JEPA 2 has it; the two channels of a pair turn by different angles.
        axis_order: count a patch's running number on a grid whose axes are these of the network's, as ``(2, 0, 1)``
            for weights that were trained with patches of ``(H, W, D)`` counted as if they lay ``(D, H, W)``.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> rope = partial(RotaryPositions3D, unit="mm", unit_mm=8.0)
        >>> net = VisionTransformer3D((96, 96, 24), (8, 8, 2), pos_embed="none", rope=rope)
        >>> set_spacing(net, (0.7, 0.7, 5.0))
    """

    def __init__(
        self,
        head_dim: int,
        unit: str = "patch",
        *,
        pairs: tuple[int, int, int] | None = None,
        temperature: float = 100.0,
        rotate_half: bool = False,
        unit_mm: float = 16.0,
        reference: Sequence[float] | None = None,
        offset: int = 0,
        spacing_mm: Sequence[float] | Tensor | None = None,
        ladder: Sequence[float] | None = None,
        repeated: bool = False,
        axis_order: tuple[int, int, int] = (0, 1, 2),
    ) -> None:
        super().__init__()
        if unit not in POSITION_UNITS:
            raise ValueError(f"rope unit {unit!r}; expected one of {', '.join(map(repr, POSITION_UNITS))}.")
        if not (temperature > 1 and unit_mm > 0):
            raise ValueError(f"temperature={temperature}, unit_mm={unit_mm}; expected more than 1 and more than 0.")
        if head_dim % 2 or pairs is None:
            pairs = split_pairs(head_dim)
        self.pairs = (int(pairs[0]), int(pairs[1]), int(pairs[2]))
        self.rest = head_dim // 2 - sum(self.pairs)
        if min(self.pairs) < 0 or max(self.pairs) < 1 or self.rest < 0:
            raise ValueError(f"pairs={pairs}; expected 0 or more per axis, and at most {head_dim // 2} in all.")
        self.head_dim, self.unit, self.rotate_half = head_dim, unit, bool(rotate_half)
        self.temperature, self.unit_mm, self.offset = float(temperature), float(unit_mm), int(offset)
        if unit != "patch" and (reference is not None or offset):
            raise ValueError(f"reference={reference}, offset={offset}: for unit 'patch' alone, not for {unit!r}.")
        self.reference = None if reference is None else tuple(map(float, reference))
        self.ladder, self.repeated = None if ladder is None else [float(speed) for speed in ladder], bool(repeated)
        if self.ladder is not None and len(self.ladder) != max(self.pairs):
            raise ValueError(f"ladder of {len(self.ladder)} speeds; expected {max(self.pairs)}, the pairs of an axis.")
        if self.repeated and self.rotate_half:
            raise ValueError("repeated=True pairs neighbours: leave rotate_half False.")
        if sorted(axis_order) != [0, 1, 2]:
            raise ValueError(f"axis_order={axis_order}; expected 0, 1 and 2 in some order.")
        self.axis_order = (int(axis_order[0]), int(axis_order[1]), int(axis_order[2]))
        self.spacing_mm = None if spacing_mm is None else _spacing_rows(spacing_mm)

    def extra_repr(self) -> str:
        """Describe the options for ``print``."""
        unit = f"unit_mm={self.unit_mm}" if self.unit == "mm" else f"unit={self.unit!r}"
        unit += f", reference={self.reference}, offset={self.offset}" if self.reference else ""
        unit += f", ladder={self.ladder}" if self.ladder else ""
        unit += f", repeated={self.repeated}" if self.repeated else ""
        unit += f", axis_order={self.axis_order}" if self.axis_order != (0, 1, 2) else ""
        return f"{unit}, pairs={self.pairs}, temperature={self.temperature}, rotate_half={self.rotate_half}"

    def forward(self, x: Tensor, grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> Tensor:
        """Return the table for a patch grid.

        Args:
            x: ``(B, C, H, W, D)``.
            grid: patches along ``(H, W, D)``.
            patch_size: voxels per patch along ``(H, W, D)``.

        Returns:
            ``(S, 1, N, 2 * head_dim)`` as :func:`rotary_table`; S is B where each sample has a spacing of its own.

        Raises:
            ValueError: ``"mm"`` without a spacing, or as many spacings as there are not samples.
        """
        steps, spacing = (1.0, 1.0, 1.0), self.spacing_mm if self.unit == "mm" else None
        order = self.axis_order
        grid = (grid[order[0]], grid[order[1]], grid[order[2]])
        if self.unit == "mm":
            if spacing is None:
                raise ValueError(
                    "rotary positions in mm need the voxel spacing, and none was set: call "
                    "monai_vit3d.layers.set_spacing(network, (0.7, 0.7, 5.0)) with that of the images."
                )
            steps = (patch_size[0] / self.unit_mm, patch_size[1] / self.unit_mm, patch_size[2] / self.unit_mm)
        elif self.unit == "box":
            steps = (4 * math.pi, 4 * math.pi, 4 * math.pi)
        elif self.reference is not None:
            steps = (self.reference[0] / grid[0], self.reference[1] / grid[1], self.reference[2] / grid[2])
        pairs, rest, temperature, half, offset = self.pairs, self.rest, self.temperature, self.rotate_half, self.offset
        return rotary_table(
            x, grid, self.unit, steps, spacing, pairs, rest, temperature, half, offset, self.ladder, self.repeated
        )


def mm_positions(network: nn.Module) -> list[RotaryPositions3D]:
    """Return the rotary positions in a network that depend on the voxel spacing."""
    return [m for m in network.modules() if isinstance(m, RotaryPositions3D) and m.unit == "mm"]


def set_spacing(network: nn.Module, spacing_mm: Sequence[Any] | Tensor) -> None:
    """Set the voxel spacing of the next images for a network's rotary positions in mm.

    It holds until the next call; :class:`~monai_vit3d.inferers.SpacingInferer` does it by the images' affines. An
    attribute and no argument of ``forward``, because sliding windows, taps, heads, pretraining and tracers hand a
    network one tensor. ``torch.export`` and TorchScript keep the value that was set.

    Args:
        network: anything that holds a :class:`~monai_vit3d.networks.VisionTransformer3D` with ``rope="mm"``, or more
            than one (a student and its teacher): it is set in each.
        spacing_mm: ``(3,)`` in ``(H, W, D)`` for all images, or ``(B, 3)``, a row for each sample of the next batches.

    Raises:
        ValueError: numbers that are no spacings, or a network without positions in mm; nothing was changed then.
    """
    rows, ropes = _spacing_rows(spacing_mm), mm_positions(network)
    if not ropes:
        raise ValueError(f"{type(network).__name__} has no rotary positions in mm: build the backbone with rope='mm'.")
    for rope in ropes:
        rope.spacing_mm = rows


def _spacing_rows(spacing_mm: Sequence[Any] | Tensor) -> Tensor:
    """Return ``(S, 3)`` float64 on the CPU, which half precision and a cast of the network leave alone."""
    try:
        rows = torch.stack([torch.as_tensor(v, dtype=torch.float64, device="cpu").detach() for v in spacing_mm])
    except (TypeError, ValueError, RuntimeError):
        rows = torch.zeros(0)
    if rows.dim() not in (1, 2) or rows.numel() == 0 or rows.shape[-1] != 3 or not bool((rows > 0).all()):
        raise ValueError(f"spacing_mm={spacing_mm}: three positive numbers in (H, W, D), or such a row a sample.")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"spacing_mm={spacing_mm}; expected finite numbers.")
    return rows.reshape(-1, 3)
