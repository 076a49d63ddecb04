"""MONAI's Spacing, one axis after another where no axis of the grid is turned: the same values, many times faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from monai.config import USE_COMPILED
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import AFFINE_TOL, to_affine_nd
from monai.networks.utils import to_norm_affine
from monai.transforms import Spacing, Spacingd, SpatialResample
from monai.utils import TraceKeys, get_equivalent_dtype, get_torch_dtype_from_string
from torch import Tensor
from torch.nn.functional import affine_grid

TURN_VOXELS = 1e-7  # what a turned axis may shift a voxel by; more would be seen in the seventh digit
HUGE = 1e38  # the difference of two larger values leaves float32
TIE_VOXELS = 1e-6  # nearer to the middle of two voxels, rounding decides which one is nearest


class SeparableResample(SpatialResample):
    """MONAI's ``SpatialResample``, one axis after another in float32 where the grids differ by no rotation or shear.

    The coordinates are MONAI's own. Values differ by rounding, less than 1e-6 of the largest; nearest ones not at all.
    MONAI's way is taken for anything else: other modes than bilinear and nearest, coordinates outside the image with
    another padding than border, images that are not 3D, not on the CPU, lazy, or part of a gradient, and for linear
    interpolation of values that are not finite or above 1e38.

    Arguments are those of ``monai.transforms.SpatialResample``.
    """

    def __call__(
        self,
        img: Tensor,
        dst_affine: Tensor | None = None,
        spatial_size: Sequence[int] | Tensor | int | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> Tensor:
        """Resample; arguments as MONAI's.

        Args:
            img: (C, H, W, D).
            dst_affine: (4, 4), voxel to world, of the result.
            spatial_size: of the result.
            mode: bilinear, nearest, or others of MONAI's.
            padding_mode: what lies outside.
            align_corners: as of ``grid_sample``.
            dtype: in which coordinates are computed.
            lazy: whether to note it only.

        Returns:
            (C, H', W', D') float32.
        """
        given = (
            _text(self.mode if mode is None else mode),
            _text(self.padding_mode if padding_mode is None else padding_mode),
            self.align_corners if align_corners is None else align_corners,
            get_equivalent_dtype(dtype or self.dtype or img.dtype, torch.Tensor),
        )
        lazy = self.lazy if lazy is None else lazy
        move = None if lazy else _Move.between(img, dst_affine, spatial_size)
        lines = move and _is_served(img, given[0]) and move.lines(*given)
        if not move or not lines:
            return super().__call__(img, dst_affine, spatial_size, *given, lazy=lazy)
        traced = self._traced(img, move, *given)
        return MetaTensor(_resample(img.as_tensor(), lines)).copy_meta_from(traced)

    def inverse(self, data: Tensor) -> Tensor:
        """Back to the grid that the last call came from.

        Args:
            data: (C, H', W', D'), with the trace of that call.
        """
        trace = self.pop_transform(data)
        info = trace[TraceKeys.EXTRA_INFO]
        corners = info["align_corners"]
        with self.trace_transform(False):
            return SeparableResample.__call__(
                self,
                data,
                info["src_affine"],
                trace[TraceKeys.ORIG_SIZE],
                info["mode"],
                info["padding_mode"],
                False if corners == TraceKeys.NONE else corners,
                get_torch_dtype_from_string(info["dtype"]),
            )

    def _traced(self, img: MetaTensor, move: _Move, mode: Any, padding: Any, corners: bool, dtype: Any) -> Any:
        """What MONAI's own resampling notes of itself."""
        extra = {"dtype": str(dtype)[6:], "mode": mode, "padding_mode": padding, "align_corners": corners}
        return self.track_transform_meta(
            img,
            sp_size=torch.tensor(move.after),
            affine=move.xform,
            extra_info={**extra, "src_affine": move.source},
            orig_size=img.peek_pending_shape(),
            transform_info=self.get_transform_info(),
            lazy=False,
        )


class SeparableSpacing(Spacing):
    """``monai.transforms.Spacing`` by :class:`SeparableResample`; same arguments, same result."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sp_resample = _separable(self.sp_resample)


class SeparableSpacingd(Spacingd):
    """``monai.transforms.Spacingd`` by :class:`SeparableResample`; same arguments, same result.

    Example:
        >>> from monai.transforms import Compose, LoadImaged
        >>> spacing = SeparableSpacingd("image", pixdim=(1.5, 1.5, 2.0), mode="bilinear")
        >>> steps = Compose([LoadImaged("image", ensure_channel_first=True), spacing])

        or ``"_target_": "monai_vit3d.data.SeparableSpacingd"``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spacing_transform.sp_resample = _separable(self.spacing_transform.sp_resample)


@dataclass(frozen=True)
class _Line:
    """Where the voxels of one axis come from.

    Args:
        lower: (n,) indices.
        upper: (n,) indices of their neighbours.
        weight: (n,) float32 of the neighbours; None where it is 0 for all.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor | None

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        weights = [0.0] * len(self.lower) if self.weight is None else self.weight.tolist()
        return zip(self.lower.tolist(), self.upper.tolist(), weights)

    def along(self, plane: Tensor, axis: int) -> Tensor:
        """A plane with this axis resampled."""
        lower = plane.index_select(axis, self.lower)
        if self.weight is None:
            return lower
        return torch.lerp(lower, plane.index_select(axis, self.upper), self.weight if axis else self.weight[:, None])


@dataclass(frozen=True, eq=False)
class _Move:
    """From one grid to another that is not turned against it.

    Args:
        source: (4, 4) affine.
        xform: (4, 4) float64, voxel of the new grid to voxel of the old one.
        before: shape of the old grid.
        after: shape of the new one.
    """

    source: Tensor
    xform: Tensor
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def between(cls, img: Any, affine: Tensor | None, size: Any) -> _Move | None:
        """The move that is asked for, or None where MONAI has to do it."""
        simple = isinstance(img, MetaTensor) and get_track_meta() and not img.pending_operations and not USE_COMPILED
        if not simple or img.ndim != 4 or img.is_complex() or img.requires_grad or img.device.type != "cpu":
            return None
        if affine is None or isinstance(size, int | None) or len(size) != 3 or min(size) < 1 or not img.numel():
            return None
        source, target = (to_affine_nd(3, a).to(torch.float64).cpu() for a in (img.affine, affine))
        if not source[:3, :3].det():
            return None
        xform = torch.as_tensor(np.linalg.solve(source.numpy(), target.numpy()))
        move = cls(source, xform, tuple(img.shape[1:]), tuple(int(n) for n in size))
        return None if move._is_none(target) or move._turn() > TURN_VOXELS else move

    def lines(self, mode: Any, padding: Any, corners: bool, dtype: Any) -> list[_Line] | None:
        """Where each axis comes from, or None where MONAI has to do it."""
        if mode not in ("bilinear", "nearest") or dtype not in (torch.float32, torch.float64):
            return None
        theta = to_norm_affine(self.xform[None].to(dtype), self.before, self.after, corners)[0]
        found = []
        for axis, (before, after) in enumerate(zip(self.before, self.after)):
            places = _places(theta[axis, axis], theta[axis, 3], before, after, corners)
            inside = places.clamp(0, before - 1)
            if padding != "border" and not places.equal(inside):
                return None
            if mode == "nearest" and self._turn() and bool(((inside % 1 - 0.5).abs() < TIE_VOXELS).any()):
                return None
            found.append(_line(inside, before, mode))
        return found

    def _is_none(self, target: Tensor) -> bool:
        """What MONAI takes for no resampling at all."""
        near = torch.allclose(self.source, target, atol=AFFINE_TOL)
        near = near or torch.allclose(self.xform, torch.eye(4, dtype=torch.float64), atol=AFFINE_TOL)
        return near and self.before == self.after

    def _turn(self) -> float:
        """How far, in voxels of the old grid, the other axes shift a voxel at most."""
        matrix = self.xform[:3, :3]
        off = (matrix - matrix.diag().diag()).abs() @ (torch.tensor(self.after, dtype=torch.float64) - 1)
        return float(off.max())


def _places(scale: Tensor, shift: Tensor, before: int, after: int, corners: bool) -> Tensor:
    """Coordinates of one axis's voxels in the old grid, (after,): MONAI's and grid_sample's own steps."""
    theta = scale.new_zeros(1, 3, 4)
    theta[0, 0, 0], theta[0, 0, 3] = scale, shift
    # 2: it warns of sides of 1
    line = affine_grid(theta, [1, 1, 2, 2, after], align_corners=corners)[0, 0, 0, :, 0]
    return (line + 1) / 2 * (before - 1) if corners else ((line + 1) * before - 1) / 2


def _line(places: Tensor, before: int, mode: str) -> _Line:
    if mode == "nearest":
        nearest = places.round().long()
        return _Line(nearest, nearest, None)
    lower = places.floor()
    weight, lower = (places - lower).float(), lower.long()
    return _Line(lower, (lower + 1).clamp(max=before - 1), weight if bool(weight.any()) else None)


def _resample(image: Tensor, lines: list[_Line]) -> Tensor:
    """(C, H, W, D) to (C, H', W', D') float32, plane after plane: a plane stays in a core's cache."""
    if any(line.weight is not None for line in lines):
        image = image.float()
    out = torch.empty(len(image), *(len(line.lower) for line in lines))
    # planes as they lie in memory, however the axes were permuted before
    order = sorted(range(3), key=lambda axis: -image.stride(axis + 1))
    source, target = (t.permute(0, *(axis + 1 for axis in order)) for t in (image, out))
    first, second, third = (lines[axis] for axis in order)
    for planes, results in zip(source, target):
        for result, (lower, upper, weight) in zip(results, first):
            plane = torch.lerp(planes[lower], planes[upper], weight) if weight else planes[lower]
            result.copy_(third.along(second.along(plane, 0), 1))
    return out


def _is_served(image: MetaTensor, mode: Any) -> bool:
    """Whether differences of values are finite, where they are taken; NaN fails, too."""
    if mode != "bilinear" or not image.is_floating_point():
        return True
    # axes as they lie in memory: others take 100 times as long
    low, high = image.as_tensor().permute(sorted(range(4), key=lambda axis: -image.stride(axis))).aminmax()
    return bool(low >= -HUGE) and bool(high <= HUGE)


def _separable(resample: SpatialResample) -> SeparableResample:
    return SeparableResample(
        resample.mode, resample.padding_mode, resample.align_corners, resample.dtype, resample.lazy
    )


def _text(mode: Any) -> Any:
    return mode.value if isinstance(mode, Enum) else mode
