"""A state dict with the patch kernel and the positions that a 3D network needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from ...data.errors import WeightsError
from ...layers import resample_pos_embed
from ...networks import VisionTransformer3D
from ..inflate import fit_kernel, inflate_positions

KERNEL, POS = "patch_embed.proj.weight", "pos_embed"


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor],
    model: VisionTransformer3D,
    *,
    kernel: str = "mean",
    positions: str = "repeat",
    axis: int = 2,
    grid: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """A state dict with the patch kernel and the positions that a 3D network needs, as timm's models have one.

    Args:
        state_dict: of a timm VisionTransformer, or of a :class:`VisionTransformer3D` with another patch, grid or
            number of channels; keys are kept.
        model: the network that the weights are for.
        kernel: how a 2D kernel is inflated, ``"mean"``, ``"center"`` or ``"trilinear"``.
        positions: how 2D positions are inflated, ``"repeat"`` or ``"factored"``.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``.
        grid: patches along the axes that the positions were learned on; None finds a square (of a 3D kernel: the
            network's own grid or a cube).

    Returns:
        A new dict; tensors that need no change are the same objects. Half precision becomes float32 where changed.

    Raises:
        UsageError: unknown mode or axis.
        WeightsError: no kernel, or positions that do not fit the grid.
    """
    weight = state_dict.get(KERNEL)
    if weight is None or weight.dim() not in (4, 5):
        came = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
        raise WeightsError(f"{KERNEL} is {came}; one of shape (E, C, h, w) or (E, C, h, w, d) is needed.")
    found = dict(state_dict)
    patch = tuple(model.patch_embed.patch_size)
    chans = int(model.in_chans)
    if weight.dim() == 4 or tuple(weight.shape[1:]) != (chans, *patch):
        found[KERNEL] = fit_kernel(_at_least_float32(weight), patch, chans, kernel, axis)
    pos, own = found.get(POS), model.pos_embed
    if pos is not None and isinstance(own, nn.Parameter):
        prefix = own.shape[1] - model.num_patches
        old = _grid(pos.shape[1] - prefix, weight.dim() - 2, tuple(model.grid_size), grid)
        if len(old) == 3:
            found[POS] = _resampled(pos, old, tuple(model.grid_size), prefix)
        else:
            found[POS] = inflate_positions(_at_least_float32(pos), old, model.grid_size, prefix, positions, axis)
    return found


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _grid(count: int, axes: int, own: tuple[int, ...], grid: Sequence[int] | None) -> tuple[int, ...]:
    """The grid that ``count`` positions were learned on: what was said, the network's own, or a square or cube."""
    if grid is None and axes == 3 and count == prod(own):
        return own
    side = round(max(count, 0) ** (1 / axes))
    old = (side,) * axes if grid is None else tuple(grid)
    if len(old) != axes or prod(old) != count or count < 1:
        raise WeightsError(
            f"pos_embed has positions for {count} patches, grid={grid} came; {axes} numbers with that product are "
            "needed. Name the grid that they were learned on."
        )
    return old


def _resampled(pos: Tensor, old: tuple[int, ...], new: tuple[int, ...], prefix: int) -> Tensor:
    if old == new:
        return pos
    return resample_pos_embed(pos, (old[0], old[1], old[2]), (new[0], new[1], new[2]), prefix)
