"""A DICOM series as a volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import ImageError
from ..volume import Array, Volume
from .series import Series, shown
from .stack import Slice, stack_slices


def read_series(series: Series, max_voxels: int = 2**30) -> Volume:
    """The volume of a series of single-frame files or of enhanced multi-frame files.

    Values are rescaled as each slice says (CT: HU; a PET's slopes differ from slice to slice). The affine comes from
    the positions and orientation of the slices alone; slice thickness, spacing between slices and instance numbers
    are not trusted. With a tilted gantry the affine has a shear, so that every voxel is where it was. Every slice
    must lie within 1 % of the spacing of its place on the even grid from first to last. A slice that is missing at
    either end cannot be noticed.

    Args:
        series: from :func:`find_series`.
        max_voxels: more are refused before memory is taken.

    Returns:
        Voxels (columns, rows, slices), float32, rescaled in float64; slices along rows x columns. Its path is the
        folder.

    Raises:
        ImageError: missing, doubled or unevenly spaced slices, fewer than two, several orientations, sizes or pixel
            spacings, colour, pixels that are cut off or cannot be decoded, or pydicom is not there.
    """
    slices, grid, warnings = stack_slices(series)
    if np.prod(grid.shape, dtype=float) > max_voxels:
        raise ImageError(f"{shown(series)}: {grid.shape} voxels; at most {max_voxels} are taken. Raise the limit.")
    return Volume(series.files[0].parent, _planes(slices).T, grid, warnings)


def _planes(slices: Sequence[Slice]) -> Array:
    """(slices, rows, columns) float32, rescaled."""
    from pydicom.pixels import apply_modality_lut, iter_pixels

    planes = np.empty((len(slices), *slices[0].shape), np.float32)
    place = {(s.path, s.frame): k for k, s in enumerate(slices)}
    for path, frames in Counter(s.path for s in slices).items():
        try:
            for frame, stored in zip(range(frames), iter_pixels(path), strict=True):
                k = place[path, frame]
                with np.errstate(over="ignore", invalid="ignore"):
                    planes[k] = apply_modality_lut(stored, slices[k].rescale)
                if not np.isfinite(planes[k]).all():
                    raise ValueError("values that are not finite after rescaling")
        except Exception as error:  # each decoder has its own
            why = " ".join(str(error).split())  # pydicom lists decoders on lines of their own
            raise ImageError(
                f"{path.name}: its pixels cannot be had ({why}). Copy it again if it is cut off; if no decoder is "
                "there, convert it, for instance with gdcmconv --raw, or pip install monai-vit3d[dicom]."
            ) from error
    return planes
