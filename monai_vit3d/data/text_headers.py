"""What NRRD and MetaImage have in common: a text header, and behind it the voxels, raw or compressed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .nifti.file_bytes import AGAIN, refusal
from .nifti.image_file import ImageHeader
from .volume import Array, Grid

HEADER_LIMIT = 2**20  # bytes


def attached_voxels(
    path: Path,
    volume: int | None,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    affine_mm: Array,
    start: int,
    wbits: int | None,
    warnings: tuple[str, ...] = (),
) -> ImageHeader:
    """Build the header of a file that holds one volume, its voxels right behind the text.

    Args:
        path: of the file, for messages.
        volume: the number that was asked for; there is only 0.
        shape: voxels along the three axes.
        dtype: of a stored voxel, with byte order.
        affine_mm: (4, 4), RAS+ mm.
        start: byte at which the voxels begin.
        wbits: for ``zlib``, of compressed voxels; None of raw ones.
        warnings: a sentence for each oddity.

    Raises:
        ImageError: another volume, or a side without a voxel.
    """
    if volume:
        raise refusal(path, f"volume {volume}; the file holds one", "Leave out volume=.")
    if min(shape) < 1:
        raise refusal(path, f"shape {shape}; every side needs a voxel", AGAIN)
    end = start + math.prod(shape) * dtype.itemsize
    return ImageHeader(Grid(shape, affine_mm), dtype, start, end, wbits=wbits, warnings=warnings)


def parse_numbers(text: str, count: int, field: str, path: Path) -> list[float]:
    """Parse a field of ``count`` finite numbers.

    Raises:
        ImageError: another count, or a word that is no finite number.
    """
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise refusal(path, f"{field} '{text[:60]}'; expected {count} numbers", AGAIN)
    return values
