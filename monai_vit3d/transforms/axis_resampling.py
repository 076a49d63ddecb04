"""Map the voxels of one grid to another one, each axis by itself, where neither is rotated against the other."""

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

MAX_ROTATION_VOXELS = 1e-7  # a larger shift by the other axes would be seen in the seventh digit
MAX_TIE_VOXELS = 1e-6  # nearer to the middle between two voxels, rounding decides which one is nearest


@dataclass(frozen=True)
class AxisInterp:
    """Where the voxels of one axis come from, for linear interpolation along it.

    Args:
        lower: (n,) indices.
        upper: (n,) indices of their neighbours.
        weight: (n,) float32 of the neighbours; None if it is 0 for all.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor | None

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        """Iterate over lower index, upper index and weight of each voxel."""
        weights = [0.0] * len(self.lower) if self.weight is None else self.weight.tolist()
        return zip(self.lower.tolist(), self.upper.tolist(), weights)

    def resample(self, plane: Tensor, axis: int) -> Tensor:
        """Resample a plane along its axis 0 or 1."""
        lower = select(plane, axis, self.lower)
        if self.weight is None:
            return lower
        return torch.lerp(lower, select(plane, axis, self.upper), self.weight if axis else self.weight[:, None])


@dataclass(frozen=True, eq=False)
class GridMapping:
    """A mapping from one grid to another one that is not rotated against it.

    Args:
        source_affine: (4, 4).
        xform: (4, 4) float64, voxel of the new grid to voxel of the old one.
        source_shape: of the old grid.
        target_shape: of the new one.
    """

    source_affine: Tensor
    xform: Tensor
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]

    @classmethod
    def between(cls, img: Any, affine: Tensor | None, size: Any) -> GridMapping | None:
        """Build the mapping of an image to a grid; None if only MONAI can resample it.

        Args:
            img: (C, H, W, D).
            affine: (4, 4), voxel to world, of the new grid.
            size: of the new grid.
        """
        simple = isinstance(img, MetaTensor) and get_track_meta() and not img.pending_operations and not USE_COMPILED
        if not simple or img.ndim != 4 or img.is_complex() or img.requires_grad or img.device.type != "cpu":
            return None
        if affine is None or isinstance(size, int | None) or len(size) != 3 or min(size) < 1 or not img.numel():
            return None
        source, target = (to_affine_nd(3, a).to(torch.float64).cpu() for a in (img.affine, affine))
        if not source[:3, :3].det():
            return None
        xform = torch.as_tensor(np.linalg.solve(source.numpy(), target.numpy()))
        mapping = cls(source, xform, tuple(img.shape[1:]), tuple(int(n) for n in size))
        is_unserved = mapping.is_identity(target) or mapping.rotation_voxels() > MAX_ROTATION_VOXELS
        return None if is_unserved else mapping

    def axis_interps(self, mode: Any, padding_mode: Any, align_corners: bool, dtype: Any) -> list[AxisInterp] | None:
        """Compute where the voxels of each axis come from; None if only MONAI can resample in this way.

        Args:
            mode: ``"bilinear"`` or ``"nearest"``; others are MONAI's.
            padding_mode: what lies outside.
            align_corners: as of ``grid_sample``.
            dtype: in which coordinates are computed.
        """
        if mode not in ("bilinear", "nearest") or dtype not in (torch.float32, torch.float64):
            return None
        theta = to_norm_affine(self.xform[None].to(dtype), self.source_shape, self.target_shape, align_corners)[0]
        interps = []
        for axis, (source_size, size) in enumerate(zip(self.source_shape, self.target_shape)):
            coordinates = _coordinates(theta[axis, axis], theta[axis, 3], source_size, size, align_corners)
            inside = coordinates.clamp(0, source_size - 1)
            if padding_mode != "border" and not coordinates.equal(inside):
                return None
            if mode == "nearest" and self.rotation_voxels() and bool(((inside % 1 - 0.5).abs() < MAX_TIE_VOXELS).any()):
                return None
            interps.append(_axis_interp(inside, source_size, mode))
        return interps

    def is_identity(self, target_affine: Tensor) -> bool:
        """Return whether MONAI would not resample at all."""
        near = torch.allclose(self.source_affine, target_affine, atol=AFFINE_TOL)
        near = near or torch.allclose(self.xform, torch.eye(4, dtype=torch.float64), atol=AFFINE_TOL)
        return near and self.source_shape == self.target_shape

    def rotation_voxels(self) -> float:
        """Compute how far the other axes shift a voxel at most, in voxels of the old grid."""
        matrix = self.xform[:3, :3]
        off_diagonal = (matrix - matrix.diag().diag()).abs()
        return float((off_diagonal @ (torch.tensor(self.target_shape, dtype=torch.float64) - 1)).max())


def select(values: Tensor, axis: int, index: Tensor) -> Tensor:
    """Compute ``values.index_select(axis, index)`` on the CPU; along the last axis NumPy is several times as fast."""
    if axis < values.dim() - 1:
        return values.index_select(axis, index)
    return torch.from_numpy(np.take(values.numpy(), index.numpy(), axis))


def _coordinates(scale: Tensor, shift: Tensor, source_size: int, size: int, align_corners: bool) -> Tensor:
    """Coordinates of one axis's voxels in the old grid, (size,): by MONAI's and grid_sample's own steps."""
    theta = scale.new_zeros(1, 3, 4)
    theta[0, 0, 0], theta[0, 0, 3] = scale, shift
    # 2: affine_grid warns of sides of 1
    line = affine_grid(theta, [1, 1, 2, 2, size], align_corners=align_corners)[0, 0, 0, :, 0]
    return (line + 1) / 2 * (source_size - 1) if align_corners else ((line + 1) * source_size - 1) / 2


def _axis_interp(coordinates: Tensor, source_size: int, mode: str) -> AxisInterp:
    if mode == "nearest":
        nearest = coordinates.round().long()
        return AxisInterp(nearest, nearest, None)
    floor = coordinates.floor()
    weight, lower = (coordinates - floor).float(), floor.long()
    return AxisInterp(lower, (lower + 1).clamp(max=source_size - 1), weight if bool(weight.any()) else None)
