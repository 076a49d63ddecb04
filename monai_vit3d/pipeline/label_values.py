"""Recognise label maps given as images: few whole values, or whole values that neighbours share as labels do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Array, Volume

MAX_LABEL_VALUES = 32  # scans of 8 bits have about 100 and more
MIN_VOXELS = 1000  # smaller volumes have few values anyway
FIRST_SAMPLE, VALUES_AT_A_TIME = 2**14, 2**18  # voxels
# of a parcellation: pairs of neighbours above the lowest value, most of which are equal; of 8-bit scans at most a third
FEWEST_PAIRS, SHARED_BY_NEIGHBOURS, PAIRS_SAMPLE = 1000, 0.8, 2**20

_INCLUDE = "include_labels=True"


def check_label_values(volume: Volume) -> Volume:
    """Refuse or warn of labels that are given as a scan.

    Values from 0 on with hardly a gap, such as 0, 1, 2, 4, are labels. Other sets of up to 32 whole values may be a
    binary or quantised scan as well, and more values that neighbours share one that was enlarged, so they are only
    warned of.

    Args:
        volume: as read.

    Returns:
        The volume, with one more warning where its values may be labels.

    Raises:
        ImageError: the values are labels.
    """
    values = few_whole_values(volume.voxels) if volume.voxels.size >= MIN_VOXELS else None
    if values is None:
        return _warned(volume, "neighbours have the same whole number") if is_parcellation(volume.voxels) else volume
    names = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
    few = f"{len(values)} different values, all whole ({names})"
    if values[0] >= 0 and values[-1] <= 2 * len(values):
        raise ImageError(
            f"{volume.path}: {few}: labels, not a scan. Give the image they belong to, or {_INCLUDE} if it is a scan."
        )
    return _warned(volume, few)


def _warned(volume: Volume, oddity: str) -> Volume:
    warning = f"{oddity}: a label file? {_INCLUDE} takes it without a warning"
    return replace(volume, warnings=(*volume.warnings, warning))


def is_parcellation(voxels: Array) -> bool:
    """Return whether voxels are whole numbers from 0 on, and most neighbours above the lowest are equal.

    Args:
        voxels: (H, W, D) finite; of large volumes some planes are looked at.
    """
    planes = voxels[..., :: max(1, voxels.size // PAIRS_SAMPLE)]
    if planes.min() < 0 or (planes != np.rint(planes)).any():
        return False
    pairs = equal = 0
    for one, next_one in ((planes[1:], planes[:-1]), (planes[:, 1:], planes[:, :-1])):
        both = np.minimum(one, next_one) > planes.min()
        pairs += int(both.sum())
        equal += int((both & (one == next_one)).sum())
    return pairs >= FEWEST_PAIRS and equal >= SHARED_BY_NEIGHBOURS * pairs


def few_whole_values(voxels: Array) -> Array | None:
    """Return the values of an image with 2 to 32 different ones, all whole; None for other images.

    Args:
        voxels: finite, of any shape.
    """
    flat = voxels.reshape(-1)
    # a sparse sample settles it for nearly all scans
    values = np.unique(flat[:: max(1, flat.size // FIRST_SAMPLE)])
    for first in range(0, flat.size, VALUES_AT_A_TIME):
        if len(values) > MAX_LABEL_VALUES or (values != np.rint(values)).any():
            return None
        values = np.union1d(values, flat[first : first + VALUES_AT_A_TIME])
    return values if 2 <= len(values) <= MAX_LABEL_VALUES and (values == np.rint(values)).all() else None
