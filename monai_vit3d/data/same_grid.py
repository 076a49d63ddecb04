"""Compare the grids of images, of channels of a case as of an image and its labels."""

from __future__ import annotations

from itertools import product

import numpy as np

from .errors import ImageError, UsageError
from .volume import Array, Grid, Volume

# At the corners. Registration tools round affines; a float32 quaternion near 180 degrees may err as much by itself
SAME_PLACE_VOXELS = 0.1


def corner_shift(first: Array, second: Array, shape: tuple[int, ...]) -> float:
    """Compute how far apart two affines put the corners of a volume, in voxels of the first; the largest of eight.

    Args:
        first: (4, 4), not singular.
        second: (4, 4).
        shape: voxels along the three axes.
    """
    corners = _corners(shape)
    return _longest(np.linalg.inv(first) @ second @ corners - corners)


def check_same_grid(first: Volume, other: Volume, advice: str = "Resample one to the grid of the other first.") -> None:
    """Make sure that two images have one shape, and the same corners up to 0.1 voxel.

    Args:
        first: an image.
        other: another one.
        advice: what to do if they differ.

    Raises:
        ImageError: their grids differ; the message says how far they are apart.
    """
    shape = first.grid.shape
    if shape != other.grid.shape:
        raise ImageError(
            f"{other.path}: shape {other.grid.shape}, but {first.path} has {shape}; channels need one grid. {advice}"
        )
    shift = corner_shift(first.grid.affine_mm, other.grid.affine_mm, shape)
    if not shift <= SAME_PLACE_VOXELS:
        apart_mm = _longest((other.grid.affine_mm - first.grid.affine_mm) @ _corners(shape))
        raise ImageError(
            f"{other.path}: up to {shift:.3g} voxels ({apart_mm:.3g} mm) away from {first.path}; channels need one "
            f"grid, {SAME_PLACE_VOXELS} voxels apart at most. {advice}"
        )


def check_labels(labels: Array, voxels: Array, grid: Grid) -> None:
    """Make sure that labels belong to an image.

    Raises:
        UsageError: labels are not integers, or the shapes differ.
    """
    whole = labels.dtype.kind in "biu" or labels.ndim == 4
    if labels.ndim not in (3, 4) or labels.shape[-3:] != voxels.shape or voxels.shape != tuple(grid.shape) or not whole:
        raise UsageError(
            f"labels {labels.dtype} {labels.shape}, image {voxels.shape}, grid {tuple(grid.shape)}; expected one shape "
            "(H, W, D) and integer labels, or masks (C, H, W, D). Bring the labels onto the image's grid."
        )


def _corners(shape: tuple[int, ...]) -> Array:
    """Return the homogeneous indices (4, 8) of the corners."""
    corners = np.array([*product(*[(0, n - 1) for n in shape])], float)
    return np.c_[corners, np.ones(8)].T


def _longest(vectors: Array) -> float:
    """Compute the largest length among (4, N) homogeneous vectors."""
    return float(np.sqrt((vectors[:3] ** 2).sum(axis=0)).max())
