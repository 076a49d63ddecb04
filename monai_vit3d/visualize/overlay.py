"""Draw a case: its labels over three planes of the image, the patient's right on the picture's left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from monai_vit3d.data.files import replacing
from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.same_grid import check_labels
from monai_vit3d.data.volume import Array, Grid

from .colours import PALETTE, Colour

if TYPE_CHECKING:
    from PIL.Image import Image

Plane = Literal["axial", "coronal", "sagittal"]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
_ACROSS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis of an LPI volume that a plane cuts
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS"))
_HEIGHT, _WIDTH, _MARGIN, _GAP, _ALPHA = 260, 390, 16, 12, 0.4
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
    from PIL import Image

    check_labels(labels, voxels, grid)
    if reference is not None:
        check_labels(reference, voxels, grid)
    order, flips, turned = _to_lpi(grid.affine_mm)
    spacing = np.sqrt((turned**2).sum(axis=0))
    voxels, labels = _view(voxels, order, flips), _view(labels, order, flips)
    if reference is not None:
        reference = _view(reference, order, flips)
    if centre is None:
        box = _surroundings(labels, spacing)
        voxels, labels = voxels[box], labels[(slice(None),) * (labels.ndim - 3) + box]
        reference = reference[box] if reference is not None else None
        cut = label_centre(labels)
    else:
        cut = [voxels.shape[i] - 1 - centre[axis] if flips[i] else centre[axis] for i, axis in enumerate(order)]
    greys = [np.take(voxels, cut[_ACROSS[plane]], _ACROSS[plane]).T for plane in PLANES]
    marks = [_flat(np.take(labels, cut[_ACROSS[plane]], labels.ndim - 3 + _ACROSS[plane])).T for plane in PLANES]
    sizes = _sizes(voxels.shape, spacing)
    under: list[Array | None] = [None] * len(PLANES)
    if reference is not None:
        under = [np.take(reference, cut[_ACROSS[plane]], _ACROSS[plane]).T for plane in PLANES]
    panels = [
        _panel(_paint(grey, mark, size, colours or PALETTE, below), plane_letters(turned, plane))
        for plane, grey, mark, size, below in zip(PLANES, _windowed(greys), marks, sizes, under)
    ]
    width, height = sum(p.width for p in panels) + 2 * _GAP, max(p.height for p in panels)
    picture, left = Image.new("RGB", (width, height)), 0
    for panel in panels:
        picture.paste(panel, (left, (height - panel.height) // 2))
        left += panel.width + _GAP
    return picture


def label_centre(labels: Array) -> list[int]:
    """Find for each axis the slice with most labelled voxels, the first of equals; the middle one without a label.

    Args:
        labels: (H, W, D) integers, 0 is background; or (C, H, W, D) masks.
    """
    filled = (labels != 0).any(axis=0) if labels.ndim == 4 else labels != 0
    areas = [np.count_nonzero(filled, axis=tuple(i for i in range(3) if i != axis)) for axis in range(3)]
    return [int(area.argmax()) if area.any() else len(area) // 2 for area in areas]


def plane_letters(affine: Array, plane: Plane) -> tuple[str, str, str, str]:
    """Name the directions at the left, right, upper and lower edge of a plane's picture.

    Args:
        affine: (3, 3) or (4, 4), voxel index to world, RAS+ mm, of any orientation.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
    """
    letters = axis_letters(_to_lpi(affine)[2])
    across, down = (letter for axis, letter in enumerate(letters) if axis != _ACROSS[plane])
    return _OPPOSITE[across], across, _OPPOSITE[down], down


def write_png(image: Image, path: str | Path) -> None:
    """Write a picture, all of it or nothing; the same picture gives the same bytes.

    Args:
        image: what to write.
        path: the file; its folder is made if it is not there.
    """
    with replacing(path, "wb") as file:
        image.save(file, "PNG")


def _to_lpi(affine: Array) -> tuple[list[int], list[bool], Array]:
    """The reorientation to axes that run to the left, to the back and downward: order, flips, (3, 3) directions.

    Then every plane is one transpose: columns of its picture run to L or P, rows to P or I.
    """
    letters = axis_letters(affine)
    order = [next(i for i, letter in enumerate(letters) if letter in pair) for pair in ("LR", "PA", "IS")]
    flips = [letters[axis] in "RAS" for axis in order]
    return order, flips, np.asarray(affine, np.float64)[:3, order] * np.where(flips, -1, 1)


def _view(values: Array, order: list[int], flips: list[bool]) -> Array:
    """``(..., H, W, D)`` with the last three axes turned; nothing is copied."""
    lead = values.ndim - 3
    turned = values.transpose(*range(lead), *(lead + axis for axis in order))
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    return turned[(slice(None),) * lead + steps]


def _surroundings(labels: Array, spacing_mm: Array) -> tuple[slice, ...]:
    """The box around labels that fill little of every axis; all of the volume if they fill more, or are none."""
    filled = (labels != 0).any(axis=0) if labels.ndim == 4 else labels != 0
    box = []
    for axis, size in enumerate(filled.shape):
        planes = np.flatnonzero(filled.any(axis=tuple(i for i in range(3) if i != axis)))
        if not len(planes) or planes[-1] + 1 - planes[0] > SMALL * size:
            return (slice(None),) * 3
        around = math.ceil(AROUND_MM / spacing_mm[axis])
        box.append(slice(max(planes[0] - around, 0), planes[-1] + 1 + around))
    return tuple(box)


def _flat(labels: Array) -> Array:
    """Labels of one slice; of masks ``(C, h, w)`` the channels' numbers, the smallest mask on top."""
    if labels.ndim == 2:
        return labels
    inside = labels != 0
    flat = np.zeros(labels.shape[1:], np.int64)
    for channel in np.argsort(-inside.sum(axis=(1, 2)), kind="stable"):
        flat[inside[channel]] = channel + 1
    return flat


def _sizes(shape: Sequence[int], spacing_mm: Array) -> list[tuple[int, int]]:
    """Width and height of each plane's panel in pixels: one scale, no panel larger than ``_WIDTH`` x ``_HEIGHT``."""
    extent = np.array(shape) * spacing_mm
    edges = [np.delete(extent, _ACROSS[plane]) for plane in PLANES]
    scale = min(min(_WIDTH / width, _HEIGHT / height) for width, height in edges)
    return [(max(1, round(width * scale)), max(1, round(height * scale))) for width, height in edges]


def _windowed(slices: Sequence[Array]) -> list[Array]:
    """Grey values from 0 to 1, float32, by one window."""
    slices = [np.where(np.isfinite(s), s, 0).astype(np.float64) for s in slices]
    values = np.concatenate([s.ravel() for s in slices])
    inside = values[values != 0]
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 0.0)
    low = low if high > low else values.min()  # a mask of ones has no width inside, but one to the zeros around it
    if not high > low:
        return [np.full(s.shape, 0.5 if inside.size else 0, np.float32) for s in slices]
    return [np.clip((s - low) / (high - low), 0, 1).astype(np.float32) for s in slices]


def _panel(pixels: Array, letters: Sequence[str]) -> Image:
    """One painted plane, on a black margin with the letters."""
    from PIL import Image

    height, width = pixels.shape[:2]
    panel = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN))
    panel.paste(Image.fromarray(pixels), (_MARGIN, _MARGIN))
    _write(letters, panel)
    return panel


def _write(letters: Sequence[str], panel: Image) -> None:
    """Letters at the left, right, upper and lower edge."""
    from PIL import ImageDraw

    (width, height), near = panel.size, _MARGIN / 2
    places = [(near, height / 2), (width - near, height / 2), (width / 2, near), (width / 2, height - near)]
    pen = ImageDraw.Draw(panel)
    for place, letter in zip(places, letters):
        pen.text(place, letter, fill=(235, 235, 235), anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0))


def _paint(
    grey: Array, labels: Array, size: tuple[int, int], colours: Sequence[Colour], reference: Array | None = None
) -> Array:
    """One plane with its labels at the panel's size, (height, width, 3) uint8."""
    from PIL import Image

    width, height = size
    scaled = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    picture = np.repeat(255 * scaled[..., None], 3, axis=2)
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((height, width), labels.shape))
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
    """Labelled pixels with a neighbour, of four, that has another label or none; the picture's edge is no border."""
    padded = np.pad(labels, 1, mode="edge")
    near = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    return (labels != 0) & np.any([labels != other for other in near], axis=0)
