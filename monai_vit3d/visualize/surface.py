"""Turn a mask into a closed surface that holds as much as its voxels."""

from __future__ import annotations

import numpy as np

from monai_vit3d.data.mesh_files import Mesh
from monai_vit3d.data.volume import Array

SMOOTHING = 0.7  # voxels, standard deviation: takes the edges off the steps, and specks of a voxel with them
VOLUME_TOLERANCE = 0.005  # of the surface's volume, as a share of the voxels'
_PADDING = 3  # voxels: beyond the smoothing's reach, so that the surface is closed at the image's border, too
_MOST_TRIES = 20


def mask_surface(mask: Array, affine_mm: Array) -> Mesh | None:
    """Compute the surface of a mask by marching cubes (Lewiner et al. 2003, scikit-image's) on the smoothed mask.

    Smoothing makes curved structures smaller, so the level of the surface is found by bisection such that the volume
    inside is that of the voxels.

    Args:
        mask: (H, W, D), nonzero inside.
        affine_mm: (4, 4), voxel index to world, RAS+ mm, of either handedness.

    Returns:
        The surface, seen anticlockwise from outside; None of an empty mask.
    """
    from scipy.ndimage import gaussian_filter

    planes = [np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis))) for axis in range(3)]
    if not len(planes[0]):
        return None
    first = np.array([numbers[0] for numbers in planes])
    inside = mask[tuple(slice(numbers[0], numbers[-1] + 1) for numbers in planes)] != 0
    field = gaussian_filter(np.pad(inside, _PADDING).astype(np.float32), SMOOTHING, mode="constant")
    vertices, faces = _surface_of_volume(field, int(inside.sum()))
    world = (vertices + first - _PADDING) @ affine_mm[:3, :3].T + affine_mm[:3, 3]
    mirrored = np.linalg.det(affine_mm[:3, :3]) < 0
    return Mesh(world, faces[:, ::-1] if mirrored else faces)


def _surface_of_volume(field: Array, voxels: int) -> tuple[Array, Array]:
    """Return the level surface that holds so many voxels: (N, 3) float64 vertices in voxels, (M, 3) faces."""
    from skimage.measure import marching_cubes

    low, high = 0.0, float(field.max())
    level = min(0.5, high / 2)
    for _ in range(_MOST_TRIES):
        vertices, faces, *_ = marching_cubes(field, level, gradient_direction="ascent")  # so that faces look outward
        vertices = vertices.astype(np.float64)
        volume = enclosed_volume(vertices, faces)
        if abs(volume - voxels) <= VOLUME_TOLERANCE * voxels:
            break
        low, high = (level, high) if volume > voxels else (low, level)
        level = (low + high) / 2
    return vertices, faces


def enclosed_volume(vertices: Array, faces: Array) -> float:
    """Compute the volume inside a closed surface by the divergence theorem; negative if its faces are turned inward.

    Args:
        vertices: (N, 3).
        faces: (M, 3), indices of the vertices.
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)
