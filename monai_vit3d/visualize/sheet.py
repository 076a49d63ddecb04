"""Draw a case on one sheet: a row for each plane, three of its slices and the labels' surfaces from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vit3d.data.same_grid import check_labels
from monai_vit3d.data.volume import Array, Grid

from .colours import PALETTE
from .label_views import paint_label_view
from .overlay import flatten_masks, label_slices, label_surroundings, paint_labels
from .planes import ACROSS, PLANES, LpiAxes, Plane, cut_plane, panel_sizes, put_in_rows, window_slices

if TYPE_CHECKING:
    from PIL.Image import Image

_SLICES = 3
_MOST = (270, 210)  # pixels of a panel


def draw_sheet(voxels: Array, labels: Array, grid: Grid) -> Image:
    """Draw three slices of each plane, where the labels are, and the labels' surfaces seen across it.

    The slices divide the labelled voxels into quarters; without a label they divide the volume, and there are no
    surfaces. Conventions as of
    :func:`~monai_vit3d.visualize.overlay.draw_overlay`.

    Args:
        voxels: (H, W, D) image; of its values only the slices are read.
        labels: (H, W, D) integers, 0 is background; or (C, H, W, D) masks.
        grid: where both lie, in any orientation.

    Returns:
        An RGB picture.

    Raises:
        UsageError: labels are not integers, or the shapes differ.
    """
    check_labels(labels, voxels, grid)
    axes = LpiAxes.of(grid.affine_mm)
    voxels, labels = axes.view(voxels), axes.view(labels if labels.ndim == 3 else flatten_masks(labels))
    box = label_surroundings(labels, axes.spacing_mm)
    voxels, labels = voxels[box], labels[box]
    slices = label_slices(labels, _SLICES)
    places = [(plane, index) for plane in PLANES for index in slices[ACROSS[plane]]]
    greys = window_slices([cut_plane(voxels, *place) for place in places])
    sizes = dict(zip(PLANES, panel_sizes(voxels.shape, axes.spacing_mm, _MOST)))
    rows: dict[Plane, list[tuple[Plane, Array]]] = {plane: [] for plane in PLANES}
    for (plane, index), grey in zip(places, greys):
        rows[plane].append((plane, paint_labels(grey, cut_plane(labels, plane, index), sizes[plane], PALETTE)))
    if labels.any():
        for plane, row in rows.items():
            row.append((plane, paint_label_view(labels, plane, sizes[plane], axes.spacing_mm)))
    return put_in_rows(list(rows.values()), axes)
