"""Cut volumes into the three planes that radiologists look at, and put their pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

import numpy as np

from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.volume import Array

if TYPE_CHECKING:
    from PIL.Image import Image

Plane = Literal["axial", "coronal", "sagittal"]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
ACROSS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis of an LPI volume that a plane cuts
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS"))
_MARGIN, _GAP = 16, 12


@dataclass(frozen=True, eq=False)
class LpiAxes:
    """A grid's axes, turned to run to the left, to the back and downward.

    Then every plane is one transpose: columns of its picture run to L or P, rows to P or I.

    Args:
        order: the grid's axes in the order of the turned ones.
        flips: which of these run the other way.
        directions_mm: (3, 3), a step along each turned axis, a column each, in RAS+ mm.
    """

    order: list[int]
    flips: list[bool]
    directions_mm: Array

    @classmethod
    def of(cls, affine: Array) -> LpiAxes:
        """Turn the axes of an affine, (3, 3) or (4, 4), voxel index to world, RAS+ mm."""
        letters = axis_letters(affine)
        order = [next(i for i, letter in enumerate(letters) if letter in pair) for pair in ("LR", "PA", "IS")]
        flips = [letters[axis] in "RAS" for axis in order]
        return cls(order, flips, np.asarray(affine, np.float64)[:3, order] * np.where(flips, -1, 1))

    @property
    def spacing_mm(self) -> Array:
        """Length of a step along each turned axis."""
        return np.sqrt((self.directions_mm**2).sum(axis=0))

    def view(self, values: Array) -> Array:
        """Return ``(..., H, W, D)`` with the last three axes turned; nothing is copied."""
        lead = values.ndim - 3
        turned = values.transpose(*range(lead), *(lead + axis for axis in self.order))
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return turned[(slice(None),) * lead + steps]


def cut_planes(volume: Array, at: Sequence[int]) -> list[Array]:
    """Return the axial, coronal and sagittal plane of an LPI volume, (rows, columns) each.

    Args:
        volume: (..., L, P, I); what comes before is kept.
        at: index of the voxel that the planes pass through.
    """
    return [cut_plane(volume, plane, at[ACROSS[plane]]) for plane in PLANES]


def cut_plane(volume: Array, plane: Plane, index: int) -> Array:
    """Return one plane of an LPI volume, (rows, columns); nothing is copied.

    Args:
        volume: (..., L, P, I); what comes before is kept.
        plane: which way to cut.
        index: of the slice along the axis that the plane cuts.
    """
    place = (..., *(index if axis == ACROSS[plane] else slice(None) for axis in range(3)))
    return volume[place].swapaxes(-1, -2)


def plane_letters(affine: Array, plane: Plane) -> tuple[str, str, str, str]:
    """Name the directions at the left, right, upper and lower edge of a plane's picture.

    Args:
        affine: (3, 3) or (4, 4), voxel index to world, RAS+ mm, of any orientation.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
    """
    letters = axis_letters(LpiAxes.of(affine).directions_mm)
    across, down = (letter for axis, letter in enumerate(letters) if axis != ACROSS[plane])
    return _OPPOSITE[across], across, _OPPOSITE[down], down


def panel_sizes(shape: Sequence[int], spacing_mm: Array, most: tuple[int, int] = (390, 260)) -> list[tuple[int, int]]:
    """Return width and height of each plane's panel in pixels, at one scale.

    Args:
        shape: of the LPI volume.
        spacing_mm: of its axes.
        most: width and height that none exceeds.
    """
    extent = np.array(shape) * spacing_mm
    edges = [np.delete(extent, ACROSS[plane]) for plane in PLANES]
    scale = min(min(most[0] / width, most[1] / height) for width, height in edges)
    return [(max(1, round(width * scale)), max(1, round(height * scale))) for width, height in edges]


def window_slices(slices: Sequence[Array]) -> list[Array]:
    """Return grey values from 0 to 1, float32, by one window: the 1st to 99th percentile of what is not zero."""
    slices = [np.where(np.isfinite(s), s, 0).astype(np.float64) for s in slices]
    values = np.concatenate([s.ravel() for s in slices])
    inside = values[values != 0]
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 0.0)
    low = low if high > low else values.min()  # a mask of ones has no width inside, but one to the zeros around it
    if not high > low:
        return [np.full(s.shape, 0.5 if inside.size else 0, np.float32) for s in slices]
    return [np.clip((s - low) / (high - low), 0, 1).astype(np.float32) for s in slices]


def paint_grey(grey: Array, size: tuple[int, int]) -> Array:
    """Scale grey values from 0 to 1 to a panel, (height, width, 3), from 0 to 255."""
    from PIL import Image

    scaled = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    return np.repeat(255 * scaled[..., None], 3, axis=2)


def panel_places(size: tuple[int, int], shape: Sequence[int]) -> tuple[Array, Array]:
    """Return where a panel's rows and columns lie in a plane, in pixels of that from its edge.

    Args:
        size: width and height of the panel.
        shape: rows and columns of the plane.
    """
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(size[::-1], shape))
    return rows, columns


def put_side_by_side(paintings: Sequence[Array], axes: LpiAxes) -> Image:
    """Put the three planes side by side, on black, with letters of the directions at their edges.

    Args:
        paintings: (height, width, 3) uint8, in the order of ``PLANES``.
        axes: of the LPI volume that they are of.
    """
    return put_in_rows([list(zip(PLANES, paintings))], axes)


def put_in_rows(rows: Sequence[Sequence[tuple[Plane, Array]]], axes: LpiAxes) -> Image:
    """Put panels in rows and columns on black, each in the middle of its place, with letters of the directions.

    Args:
        rows: of each panel its plane and its (height, width, 3) uint8 pixels.
        axes: of the LPI volume that they are of.
    """
    from PIL import Image

    panels = [[_panel(pixels, plane_letters(axes.directions_mm, plane)) for plane, pixels in row] for row in rows]
    widths = [max(panel.width for panel in column if panel) for column in zip_longest(*panels)]
    heights = [max(panel.height for panel in row) for row in panels]
    picture = Image.new("RGB", (sum(widths) + _GAP * (len(widths) - 1), sum(heights) + _GAP * (len(heights) - 1)))
    for row, height, top in zip(panels, heights, _starts(heights)):
        for panel, width, left in zip(row, widths, _starts(widths)):
            picture.paste(panel, (left + (width - panel.width) // 2, top + (height - panel.height) // 2))
    return picture


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each of the sizes begins, with gaps between."""
    return [sum(sizes[:i]) + _GAP * i for i in range(len(sizes))]


def _panel(pixels: Array, letters: Sequence[str]) -> Image:
    """One painted plane, on a black margin with the letters."""
    from PIL import Image

    height, width = pixels.shape[:2]
    panel = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN))
    panel.paste(Image.fromarray(pixels), (_MARGIN, _MARGIN))
    _write(letters, panel)
    return panel


def _write(letters: Sequence[str], panel: Image) -> None:
    """Write letters at the left, right, upper and lower edge."""
    from PIL import ImageDraw

    (width, height), near = panel.size, _MARGIN / 2
    places = [(near, height / 2), (width - near, height / 2), (width / 2, near), (width / 2, height - near)]
    pen = ImageDraw.Draw(panel)
    for place, letter in zip(places, letters):
        pen.text(place, letter, fill=(235, 235, 235), anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0))
