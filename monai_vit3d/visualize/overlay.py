"""Draw a case: its labels over three planes of the image, the patient's right on the picture's left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_vit3d.data.files import replacing
from monai_vit3d.data.same_grid import check_labels
from monai_vit3d.data.volume import Array, Grid

from .colours import PALETTE, Colour
from .planes import LpiAxes, cut_planes, paint_grey, panel_places, panel_sizes, put_side_by_side, window_slices

if TYPE_CHECKING:
    from PIL.Image import Image

_ALPHA = 0.4
SMALL, AROUND_MM = 0.4, 20.0  # labels within this share of each axis are drawn larger, with so much around them


def draw_overlay(
    voxels: Array,
    labels: Array,
    grid: Grid,
    colours: Sequence[Colour] | None = None,
    centre: Sequence[int] | None = None,
    reference: Array | None = None,
) -> Image:
    """Draw an axial, a coronal and a sagittal plane through the slices with most labelled voxels, in true proportion.

    Radiological convention: the patient's right is on the left of the axial and coronal plane, anterior on the left
    of the sagittal one. Letters at the edges say so. All planes have one scale; an oblique volume is drawn along its
    own axes, under the letters of the nearest body axes. Labels that fill little of the image are drawn with their
    surroundings only.

    Args:
        voxels: (H, W, D) image; of its values only three slices are read, for the window too (1st to 99th percentile
            of what is not zero).
        labels: (H, W, D) integers, 0 is background; or (C, H, W, D) masks, smaller ones on top.
        grid: where both lie, in any orientation.
        colours: RGB from 0 to 255 for labels 1, 2, ..., again from the start when they end; None is ``PALETTE``.
        centre: index of the voxel that the planes pass through; None is :func:`label_centre` of the labels.
        reference: (H, W, D) integers to compare integer labels with: their borders are white lines under the coloured
            ones of the labels, and only what differs is filled, what is missing in white.

    Returns:
        An RGB picture.

    Raises:
        UsageError: labels are not integers, or the shapes differ.
    """
    check_labels(labels, voxels, grid)
    if reference is not None:
        check_labels(reference, voxels, grid)
    axes = LpiAxes.of(grid.affine_mm)
    voxels, labels = axes.view(voxels), axes.view(labels)
    if reference is not None:
        reference = axes.view(reference)
    if centre is None:
        box = label_surroundings(labels, axes.spacing_mm)
        voxels, labels = voxels[box], labels[(slice(None),) * (labels.ndim - 3) + box]
        reference = reference[box] if reference is not None else None
        at = label_centre(labels)
    else:
        at = [voxels.shape[i] - 1 - centre[a] if axes.flips[i] else centre[a] for i, a in enumerate(axes.order)]
    greys = window_slices(cut_planes(voxels, at))
    marks = [mark if mark.ndim == 2 else flatten_masks(mark) for mark in cut_planes(labels, at)]
    under: Sequence[Array | None] = [None] * len(greys) if reference is None else cut_planes(reference, at)
    sizes = panel_sizes(voxels.shape, axes.spacing_mm)
    paintings = [
        paint_labels(grey, mark, size, colours or PALETTE, below)
        for grey, mark, size, below in zip(greys, marks, sizes, under)
    ]
    return put_side_by_side(paintings, axes)


def label_centre(labels: Array) -> list[int]:
    """Find for each axis the slice with most labelled voxels, the first of equals; the middle one without a label.

    Args:
        labels: (H, W, D) integers, 0 is background; or (C, H, W, D) masks.
    """
    return [int(area.argmax()) if area.any() else len(area) // 2 for area in _labelled_area(labels)]


def label_slices(labels: Array, count: int) -> list[list[int]]:
    """Find for each axis slices that divide the labelled voxels into equal parts; without a label, the slices.

    Args:
        labels: (H, W, D) integers, 0 is background; or (C, H, W, D) masks.
        count: so many for each axis, fewer of thin volumes and labels.
    """
    weights = [area if area.any() else np.ones_like(area) for area in _labelled_area(labels)]
    shares = np.arange(1, count + 1) / (count + 1)
    return [sorted({int(i) for i in np.searchsorted(w.cumsum(), shares * w.sum(), "right")}) for w in weights]


def _labelled(labels: Array) -> Array:
    """Return which voxels have a label, or are in a mask, (H, W, D)."""
    return (labels != 0).any(axis=0) if labels.ndim == 4 else labels != 0


def _labelled_area(labels: Array) -> list[Array]:
    """Count the labelled voxels of each slice, for each axis."""
    filled = _labelled(labels)
    return [np.count_nonzero(filled, axis=tuple(i for i in range(3) if i != axis)) for axis in range(3)]


def write_png(image: Image, path: str | Path) -> None:
    """Write a picture, all of it or nothing; the same picture gives the same bytes.

    Args:
        image: what to write.
        path: the file; its folder is made if it is not there.
    """
    with replacing(path, "wb") as file:
        image.save(file, "PNG")


def label_surroundings(labels: Array, spacing_mm: Array) -> tuple[slice, ...]:
    """Find the box around labels that fill little of every axis; all of the volume if they fill more, or are none.

    Args:
        labels: (H, W, D) integers, 0 is background; or (C, H, W, D) masks.
        spacing_mm: of the axes.
    """
    filled = _labelled(labels)
    box = []
    for axis, size in enumerate(filled.shape):
        planes = np.flatnonzero(filled.any(axis=tuple(i for i in range(3) if i != axis)))
        if not len(planes) or planes[-1] + 1 - planes[0] > SMALL * size:
            return (slice(None),) * 3
        around = math.ceil(AROUND_MM / spacing_mm[axis])
        box.append(slice(max(planes[0] - around, 0), planes[-1] + 1 + around))
    return tuple(box)


def flatten_masks(masks: Array) -> Array:
    """Put overlapping masks on top of each other, the smallest on top.

    Args:
        masks: (C, ...), not 0 is inside.

    Returns:
        Numbers of the channels from 1, 0 outside of all.
    """
    inside = masks != 0
    flat = np.zeros(masks.shape[1:], np.int64)
    for channel in np.argsort(-inside.reshape(len(inside), -1).sum(axis=1), kind="stable"):
        flat[inside[channel]] = channel + 1
    return flat


def paint_labels(
    grey: Array, labels: Array, size: tuple[int, int], colours: Sequence[Colour], reference: Array | None = None
) -> Array:
    """Paint one plane with its labels at the panel's size, (height, width, 3) uint8.

    Args:
        grey: of the plane's pixels, from 0 to 1.
        labels: of the same pixels, integers.
        size: width and height of the panel.
        colours: of labels 1, 2, ..., again from the start when they end.
        reference: labels to compare with, as in :func:`draw_overlay`.
    """
    picture = paint_grey(grey, size)
    rows, columns = (places.astype(int) for places in panel_places(size, labels.shape))
    labels = labels[np.ix_(rows, columns)]
    paint = np.array(colours)[(labels.astype(np.int64) - 1) % len(colours)]
    filled = labels != 0
    if reference is not None:
        reference = reference[np.ix_(rows, columns)]
        filled = labels != reference
        paint = np.where((labels == 0)[..., None], 255, paint)
        picture[_contour(reference)] = 255
    alpha = np.where(_contour(labels), 1.0, _ALPHA * filled)[..., None]
    return np.rint(picture + alpha * (paint - picture)).astype(np.uint8)


def _contour(labels: Array) -> Array:
    """Find labelled pixels with a neighbour, of four, of another label or none; the picture's edge is no border."""
    padded = np.pad(labels, 1, mode="edge")
    near = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    return (labels != 0) & np.any([labels != other for other in near], axis=0)
