"""Sample a volume on a grid that lies in it at any angle, and take values on such a grid back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample


@dataclass(frozen=True)
class ObliqueGrid:
    """A grid of voxels in a volume; voxel (i, j, k) of the volume lies at ``spacing_mm * (i, j, k)`` of its own mm.

    Args:
        centre_mm: (3,) where the grid's centre lies.
        rotation: (3, 3), the columns are the directions of the grid's axes.
        size: voxels along each axis.
        spacing_mm: of the grid's voxels.
    """

    centre_mm: Tensor
    rotation: Tensor
    size: tuple[int, int, int]
    spacing_mm: float

    def points_mm(self, finer: int = 1) -> Tensor:
        """Compute where the voxels lie, (H, W, D, 3) float64; with ``finer``, so many times more along each axis."""
        lines = [
            (torch.arange(n * finer, dtype=torch.float64) - (n * finer - 1) / 2) * (self.spacing_mm / finer)
            for n in self.size
        ]
        offsets = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)
        return offsets @ self.rotation.double().T + self.centre_mm.double()

    def to_volume_mm(self, voxels: Tensor) -> Tensor:
        """Map voxel coordinates of the grid, (..., 3), to the volume's millimetres."""
        middle = (torch.tensor(self.size, dtype=torch.float64) - 1) / 2
        return (voxels.double() - middle) * self.spacing_mm @ self.rotation.double().T + self.centre_mm.double()

    def to_voxels(self, points_mm: Tensor) -> Tensor:
        """Map the volume's millimetres, (..., 3), to voxel coordinates of the grid."""
        middle = (torch.tensor(self.size, dtype=torch.float64) - 1) / 2
        return (points_mm.double() - self.centre_mm.double()) @ self.rotation.double() / self.spacing_mm + middle


def sample_at(volume: Tensor, voxels: Tensor, mode: str = "bilinear") -> Tensor:
    """Interpolate a volume (C, H, W, D) at voxel coordinates (h, w, d, 3); 0 outside. Returns (C, h, w, d)."""
    size = torch.tensor(volume.shape[1:], dtype=torch.float64)
    unit = ((2 * voxels + 1) / size - 1).flip(-1).to(volume.dtype)
    return grid_sample(volume[None], unit[None], mode, "zeros", align_corners=False)[0]


def onto_grid(
    volume: Tensor, spacing_mm: Sequence[float], grid: ObliqueGrid, finer: int = 1, mode: str = "bilinear"
) -> Tensor:
    """Interpolate a volume on a grid.

    Args:
        volume: (C, H, W, D) floats.
        spacing_mm: of its voxels.
        grid: where to.
        finer: so many points along each axis are averaged for a voxel, which keeps a coarse grid from aliasing.
        mode: ``"bilinear"``, or ``"nearest"`` for labels.

    Returns:
        (C, *grid.size); 0 outside of the volume.
    """
    points = grid.points_mm(finer) / torch.tensor(list(spacing_mm), dtype=torch.float64)
    sampled = sample_at(volume, points, mode)
    return avg_pool3d(sampled, finer) if finer > 1 else sampled


def from_grid(
    values: Tensor, grid: ObliqueGrid, shape: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[tuple[slice, ...], Tensor]:
    """Interpolate values on a grid at the voxels of the volume that it lies in.

    Args:
        values: (C, *grid.size) floats.
        grid: where they lie.
        shape: of the volume.
        spacing_mm: of the volume's voxels.

    Returns:
        the box of the volume around the grid, as slices, and (C, h, w, d) values in it; 0 outside of the grid.
    """
    spacing = torch.tensor(list(spacing_mm), dtype=torch.float64)
    last = torch.tensor(grid.size, dtype=torch.float64) - 1
    corners = torch.cartesian_prod(*(torch.tensor([0.0, float(n)]) for n in last)).double()
    corners = grid.to_volume_mm(corners) / spacing
    low = corners.amin(0).round().int().tolist()
    high = corners.amax(0).round().int().tolist()
    box = tuple(slice(min(max(a, 0), n), max(min(b + 1, n), 0)) for a, b, n in zip(low, high, shape))
    lines = [torch.arange(part.start, max(part.stop, part.start), dtype=torch.float64) for part in box]
    points = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1) * spacing
    if not points.numel():
        return box, values.new_zeros((len(values), *points.shape[:3]))
    return box, sample_at(values, grid.to_voxels(points))
