"""Draw a volume's middle planes under the colours of its patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from monai_vit3d.data.volume import Array, Grid

from .planes import (  # fmt: skip
    ACROSS,
    PLANES,
    LpiAxes,
    cut_planes,
    paint_grey,
    panel_places,
    panel_sizes,
    put_side_by_side,
    window_slices,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_ALPHA = 0.55


def draw_patch_colours(voxels: Array, grid: Grid, colours: Array | None = None, patches: Grid | None = None) -> Image:
    """Draw the axial, coronal and sagittal plane in the middle of a volume, each patch in its colour.

    Conventions as of :func:`~monai_vit3d.visualize.overlay.draw_overlay`.

    Args:
        voxels: (H, W, D).
        grid: where they lie, in any orientation.
        colours: (3, h, w, d), red, green and blue from 0 to 1; where all are 0, and outside, the image is seen alone.
        patches: where the colours lie: a voxel is a patch.

    Returns:
        An RGB picture.
    """
    axes = LpiAxes.of(grid.affine_mm)
    turned = axes.view(voxels)
    at = [size // 2 for size in turned.shape]
    greys = window_slices(cut_planes(turned, at))
    sizes = panel_sizes(turned.shape, axes.spacing_mm)
    origin = grid.affine_mm[:3, :3] @ _first_index(axes, grid.shape) + grid.affine_mm[:3, 3]
    paintings = []
    for plane, grey, size in zip(PLANES, greys, sizes):
        picture = paint_grey(grey, size)
        if colours is not None and patches is not None:
            rows, columns = (places - 0.5 for places in panel_places(size, grey.shape))
            across, down = (axis for axis in range(3) if axis != ACROSS[plane])
            index = np.empty((len(rows), len(columns), 3))
            index[..., across], index[..., down], index[..., ACROSS[plane]] = columns, rows[:, None], at[ACROSS[plane]]
            colour = _colours_at(index @ axes.directions_mm.T + origin, colours, patches)
            picture += _ALPHA * (colour > 0).any(-1, keepdims=True) * (255 * colour - picture)
        paintings.append(np.rint(picture).astype(np.uint8))
    return put_side_by_side(paintings, axes)


def _first_index(axes: LpiAxes, shape: tuple[int, ...]) -> Array:
    """Return the index, on the grid, of the turned axes' first voxel."""
    first = np.zeros(3)
    for axis, is_flipped in zip(axes.order, axes.flips):
        first[axis] = shape[axis] - 1 if is_flipped else 0
    return first


def _colours_at(points_mm: Array, colours: Array, patches: Grid) -> Array:
    """Return the colours of the patches that hold points (h, w, 3), zeros outside of all."""
    from_world = np.linalg.inv(patches.affine_mm)
    index = np.floor(points_mm @ from_world[:3, :3].T + from_world[:3, 3] + 0.5).astype(int)
    is_inside = ((index >= 0) & (index < patches.shape)).all(-1, keepdims=True)
    height, width, depth = np.moveaxis(np.where(is_inside, index, 0), -1, 0)
    return np.moveaxis(colours[:, height, width, depth], 0, -1) * is_inside
