"""How the voxels of one grid lie in another one: each axis by itself, where no axis is turned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import USE_COMPILED
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import AFFINE_TOL, to_affine_nd
from monai.networks.utils import to_norm_affine
from torch import Tensor
from torch.nn.functional import affine_grid

TURN_VOXELS = 1e-7  # what a turned axis may shift a voxel by; more would be seen in the seventh digit
TIE_VOXELS = 1e-6  # nearer to the middle of two voxels, rounding decides which one is nearest


@dataclass(frozen=True)
class AxisInterp:
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
        lower = taken(plane, axis, self.lower)
        if self.weight is None:
            return lower
        return torch.lerp(lower, taken(plane, axis, self.upper), self.weight if axis else self.weight[:, None])


@dataclass(frozen=True, eq=False)
class GridMapping:
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
    def between(cls, img: Any, affine: Tensor | None, size: Any) -> GridMapping | None:
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
        return None if move.is_none(target) or move.turn_voxels() > TURN_VOXELS else move

    def lines(self, mode: Any, padding: Any, corners: bool, dtype: Any) -> list[AxisInterp] | None:
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
            if mode == "nearest" and self.turn_voxels() and bool(((inside % 1 - 0.5).abs() < TIE_VOXELS).any()):
                return None
            found.append(_line(inside, before, mode))
        return found

    def is_none(self, target: Tensor) -> bool:
        """What MONAI takes for no resampling at all."""
        near = torch.allclose(self.source, target, atol=AFFINE_TOL)
        near = near or torch.allclose(self.xform, torch.eye(4, dtype=torch.float64), atol=AFFINE_TOL)
        return near and self.before == self.after

    def turn_voxels(self) -> float:
        """How far, in voxels of the old grid, the other axes shift a voxel at most."""
        matrix = self.xform[:3, :3]
        off = (matrix - matrix.diag().diag()).abs() @ (torch.tensor(self.after, dtype=torch.float64) - 1)
        return float(off.max())


def taken(values: Tensor, axis: int, index: Tensor) -> Tensor:
    """``values.index_select(axis, index)`` on the CPU; along the last axis NumPy is several times as fast."""
    if axis < values.dim() - 1:
        return values.index_select(axis, index)
    return torch.from_numpy(np.take(values.numpy(), index.numpy(), axis))


def _places(scale: Tensor, shift: Tensor, before: int, after: int, corners: bool) -> Tensor:
    """Coordinates of one axis's voxels in the old grid, (after,): MONAI's and grid_sample's own steps."""
    theta = scale.new_zeros(1, 3, 4)
    theta[0, 0, 0], theta[0, 0, 3] = scale, shift
    # 2: it warns of sides of 1
    line = affine_grid(theta, [1, 1, 2, 2, after], align_corners=corners)[0, 0, 0, :, 0]
    return (line + 1) / 2 * (before - 1) if corners else ((line + 1) * before - 1) / 2


def _line(places: Tensor, before: int, mode: str) -> AxisInterp:
    if mode == "nearest":
        nearest = places.round().long()
        return AxisInterp(nearest, nearest, None)
    lower = places.floor()
    weight, lower = (places - lower).float(), lower.long()
    return AxisInterp(lower, (lower + 1).clamp(max=before - 1), weight if bool(weight.any()) else None)
