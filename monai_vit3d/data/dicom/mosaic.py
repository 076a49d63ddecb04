"""Read Siemens mosaics, the slices of a volume as tiles of one image (nibabel, "Siemens mosaic format")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_vit3d.data.volume import Array

from .headers import HeaderError, element, element_numbers

if TYPE_CHECKING:
    from pydicom import Dataset

_ADVICE = "a Siemens mosaic whose private CSA header is {}; convert the original files with dcm2niix"


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Positions of a mosaic's slices, in the image and in space.

    Args:
        count: number of slices.
        shape: rows and columns of a slice.
        corner: (3,) LPS mm, centre of the first slice's first voxel.
        step: (3,) LPS mm from a slice to the next.
    """

    count: int
    shape: tuple[int, int]
    corner: Array
    step: Array

    def tile(self, index: int) -> tuple[slice, slice]:
        """Return rows and columns of a slice in the image; tiles follow each other along rows."""
        rows, columns = self.shape
        down, along = divmod(index, math.ceil(math.sqrt(self.count)))
        return slice(down * rows, (down + 1) * rows), slice(along * columns, (along + 1) * columns)


def is_mosaic(header: Dataset) -> bool:
    """Return whether an image is a mosaic, by its ImageType."""
    kinds = element(header, "ImageType") or ()
    return "MOSAIC" in ([kinds] if isinstance(kinds, str) else list(kinds))


def read_mosaic(header: Dataset) -> Mosaic:
    """Read where a mosaic's slices are.

    Siemens stores the corner that an image of the mosaic's size would have around the same centre.

    Raises:
        HeaderError: the slices' fields in Siemens' private header are missing or contradictory.
    """
    csa = _csa_header(header)
    try:
        count = int(csa["NumberOfImagesInMosaic"]["items"][0])
        normal = np.array(csa["SliceNormalVector"]["items"], np.float64)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise HeaderError(_ADVICE.format("incomplete")) from error
    size = np.array([header.Rows, header.Columns])
    side = math.ceil(math.sqrt(max(count, 1)))
    if count < 1 or normal.shape != (3,) or abs(normal @ normal - 1) > 1e-3 or (size % side).any():
        raise HeaderError(_ADVICE.format(f"damaged ({count} slices do not fit Rows and Columns, or no unit normal)"))
    shape = size // side
    along, down = element_numbers(header, "ImageOrientationPatient", 6).reshape(2, 3)
    between_rows, between_columns = element_numbers(header, "PixelSpacing", 2)
    rows_off, columns_off = (size - shape) / 2
    corner = element_numbers(header, "ImagePositionPatient", 3)
    corner = corner + along * between_columns * columns_off + down * between_rows * rows_off
    step = normal * element_numbers(header, "SpacingBetweenSlices", 1)
    return Mosaic(count, (int(shape[0]), int(shape[1])), corner, step)


def _csa_header(header: Dataset) -> dict[str, Any]:
    from nibabel.nicom.csareader import get_csa_header

    try:
        return dict(get_csa_header(header)["tags"])
    except Exception as error:  # a missing header is None, a damaged one raises errors of any class
        raise HeaderError(_ADVICE.format("missing or damaged")) from error
