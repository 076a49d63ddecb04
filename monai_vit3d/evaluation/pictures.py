"""Draw a case: the borders of prediction and reference where they differ most."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from monai_vit3d.data.errors import Vit3dError
from monai_vit3d.data.readers import read_volume
from monai_vit3d.data.same_grid import check_same_grid
from monai_vit3d.data.volume import Array, Grid, Volume
from monai_vit3d.visualize.overlay import draw_overlay, label_centre

from .pairs import EvaluationCase
from .scoring import read_pair

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN_MM = 15.0  # around what is labelled


def draw_case(case: EvaluationCase) -> str:
    """Draw a case as :func:`draw_difference` does, as a data URI.

    Args:
        case: see there.

    Raises:
        ImageError: prediction or label cannot be read.
    """
    file = io.BytesIO()
    draw_difference(case).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_difference(case: EvaluationCase) -> Image:
    """Draw three planes through the slices where most voxels differ, cut to the labelled region.

    Args:
        case: its image, if it has one that lies on the labels' grid, is shown underneath; black otherwise.

    Raises:
        ImageError: prediction or label cannot be read.
    """
    prediction, label, grid = read_pair(case)
    voxels = _image(case, grid)
    box = _around((prediction != 0) | (label != 0), grid)
    prediction, label, voxels = prediction[box], label[box], voxels[box]
    different = (prediction != label).astype(np.uint8)
    centre = label_centre(different if different.any() else label)
    return draw_overlay(voxels, prediction, Grid(voxels.shape, grid.affine_mm), centre=centre, reference=label)


def _image(case: EvaluationCase, grid: Grid) -> Array:
    if case.image is not None:
        try:
            volume = read_volume(case.image, 0)
            check_same_grid(Volume(case.prediction, volume.voxels, grid), volume)
            return volume.voxels
        except (Vit3dError, OSError):
            pass  # the labels are what the page is about: an image that does not fit them is left out
    return np.zeros(grid.shape, np.float32)


def _around(labelled: Array, grid: Grid) -> tuple[slice, ...]:
    """Find the box of all that is labelled, with a margin; the whole volume if nothing is."""
    box = []
    for axis, mm in enumerate(grid.spacing_mm):
        places = np.flatnonzero(labelled.any(axis=tuple(i for i in range(3) if i != axis)))
        if not len(places):
            return (slice(None),) * 3
        margin = int(np.ceil(_MARGIN_MM / mm))
        box.append(slice(max(0, places[0] - margin), places[-1] + 1 + margin))
    return tuple(box)
