"""Labels that come as an image: a volume of few values, all of them whole numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..data.errors import ImageError
from ..data.volume import Array, Volume

FEW = 32  # different values; scans of 8 bits have about 100 and more
LEAST = 1000  # voxels; smaller volumes have few values anyhow
SAMPLE, SLAB = 2**14, 2**18  # voxels looked at first, and at a time

_INCLUDE = "include_labels=True"


def check_label_values(volume: Volume) -> Volume:
    """Look for labels that are taken for a scan.

    Values from 0 on with hardly a gap, such as 0, 1, 2, 4, are labels. Other sets of up to 32 whole values may be a
    binary or quantised scan as well, so they are only warned of.

    Args:
        volume: as it was read.

    Returns:
        It, with a warning more where its values may be labels.

    Raises:
        ImageError: they are.
    """
    values = few_whole_values(volume.voxels) if volume.voxels.size >= LEAST else None
    if values is None:
        return volume
    names = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
    found = f"{len(values)} different values, all whole ({names})"
    if values[0] >= 0 and values[-1] <= 2 * len(values):
        raise ImageError(
            f"{volume.path}: {found}: labels, not a scan. Give the image they belong to, or {_INCLUDE} if it is a scan."
        )
    return replace(volume, warnings=(*volume.warnings, f"{found}: a label file? {_INCLUDE} takes it without a warning"))


def few_whole_values(voxels: Array) -> Array | None:
    """The values of an image that has 2 to 32 different ones, all whole; None of other images.

    Args:
        voxels: finite, of any shape.
    """
    flat = voxels.reshape(-1)
    # few voxels from everywhere settle it for nearly all scans
    values = np.unique(flat[:: max(1, flat.size // SAMPLE)])
    for first in range(0, flat.size, SLAB):
        if len(values) > FEW or (values != np.rint(values)).any():
            return None
        values = np.union1d(values, flat[first : first + SLAB])
    return values if 2 <= len(values) <= FEW and (values == np.rint(values)).all() else None
