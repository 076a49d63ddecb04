"""Bring the channels of a case onto one grid: that of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .errors import ImageError
from .same_grid import check_same_grid
from .volume import Array, Grid, Volume

_EDGE = 0.5 + 1e-6  # voxels beyond the centre of the last one: half a voxel, and what affines are rounded by


def onto_first_grid(volumes: Sequence[Volume]) -> list[Volume]:
    """Resample volumes trilinearly onto the grid of the first, those that lie on it excepted.

    Voxels of the first outside of another volume get that volume's lowest value.

    Args:
        volumes: the channels of a case.

    Returns:
        As many, of one grid. Each that was resampled has a warning that says so.

    Raises:
        ImageError: a volume that has no place in common with the first.
    """
    first, *others = volumes
    return [first, *(_onto(other, first) for other in others)]


def _onto(other: Volume, first: Volume) -> Volume:
    try:
        check_same_grid(first, other)
    except ImageError:
        voxels, outside = resample_linear(other, first.grid)
        if outside == 1:
            raise ImageError(
                f"{other.path}: no voxel of {first.path} lies in it; channels of a case overlap. Give the right files."
            ) from None
        beyond = f"; {outside:.0%} of it lies outside, and got the lowest value" if outside >= 0.005 else ""
        warning = f"{other.path.name}: resampled onto the grid of {first.path.name}{beyond}"
        return replace(other, voxels=voxels, grid=first.grid, warnings=(*other.warnings, warning))
    return other


def resample_linear(volume: Volume, grid: Grid) -> tuple[Array, float]:
    """Resample a volume trilinearly; as ITK, the outer half of its border's voxels has their value.

    Args:
        volume: what to resample.
        grid: where to.

    Returns:
        (H, W, D) float32 on the grid, and the share of it that lies outside of the volume and got its lowest value.
    """
    from scipy.ndimage import affine_transform

    to_index = np.linalg.inv(volume.grid.affine_mm) @ grid.affine_mm
    options = {"output_shape": grid.shape, "output": np.float32, "order": 1, "mode": "nearest"}
    resampled: Array = affine_transform(volume.voxels, to_index[:3, :3], to_index[:3, 3], **options)
    outside = np.zeros(grid.shape, bool)
    for axis, size in enumerate(volume.grid.shape):
        index: Array = np.full((1, 1, 1), to_index[axis, 3])
        for along, voxels in enumerate(np.ogrid[tuple(map(slice, grid.shape))]):
            index = index + voxels * to_index[axis, along]
        outside |= (index < -_EDGE) | (index > size - 1 + _EDGE)
    resampled[outside] = volume.voxels.min()
    return resampled, float(outside.mean())
