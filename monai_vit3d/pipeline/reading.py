"""Read the images of a case, and hash the bytes that were read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from monai_vit3d.data.case_files import check_present, read_channels
from monai_vit3d.data.dicom import find_series, read_series
from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.files import file_sha256
from monai_vit3d.data.one_grid import onto_first_grid
from monai_vit3d.data.readers import read_grid
from monai_vit3d.data.volume import Grid, Volume

from .case import Case
from .label_values import check_label_values
from .options import Options


def read_case(
    case: Case,
    options: Options,
    include_labels: bool = False,
    check_grid: Callable[[Path, Grid, int], None] = lambda path, grid, channels: None,
    channels: int = 1,
) -> list[Volume]:
    """Read a case's images strictly, one for each channel, with the SHA-256 of what was read.

    Args:
        case: what to read.
        options: which volume, at most how large, in which units.
        include_labels: whether an image of few whole values is taken.
        check_grid: may refuse the case by the first image's path and grid and the number of images, before voxels of
            a file are read.
        channels: how many the bundle needs.

    Raises:
        ImageError: an image that cannot be used, that is labels by its values unless ``include_labels``, or that
            changed while it was read.
    """
    if case.dicom:
        # a folder that could not be searched while planning says here why
        series = case.series or find_series(case.images[0])[0]
        before, hashes = _states(series.files), case_sha256(replace(case, series=series))
        volume = read_series(series, options.max_voxels, options.volume, options.units)
        if _states(series.files) != before:
            raise ImageError(
                f"{case.images[0]}: its files changed while they were read. Run it again when they are complete."
            )
        check_grid(case.images[0], volume.grid, 1)
        return [replace(volume, sha256=tuple(hashes))]
    if options.units != "stored":
        raise ImageError(
            f"{case.images[0]}: units={options.units} needs a DICOM PET; a NIfTI file says nothing of dose and "
            "weight. Give the DICOM folder, or leave out units=."
        )
    check_present(case.images)
    is_4d = options.volume is None and len(case.images) == 1 and channels > 1
    grid = read_grid(case.images[0], 0 if is_4d else options.volume, options.max_voxels)
    check_grid(case.images[0], grid, channels if is_4d else len(case.images))
    volumes = read_channels(case.images, channels, options.volume, options.max_voxels, hashed=True)
    volumes = volumes if include_labels else [check_label_values(volume) for volume in volumes]
    return onto_first_grid(volumes) if options.resample_channels else volumes


def mask_volume_ml(mask: Volume) -> float:
    """Measure what is above 0 in a mask, in ml.

    Raises:
        ImageError: nothing is.
    """
    inside = int((mask.voxels > 0).sum())
    if not inside:
        raise ImageError(f"{mask.path}: a mask with no voxel above 0; expected the inside of the skull or the body.")
    return inside * mask.grid.voxel_ml


def case_sha256(case: Case) -> list[str]:
    """Hash each file that makes the case; none if one cannot be read, of which reading the case says why."""
    files = case.images if not case.dicom else case.series.files if case.series else ()
    files = files if case.mask is None else (*files, case.mask)
    try:
        return [file_sha256(path) for path in files]
    except OSError:
        return []


def _states(files: Sequence[Path]) -> list[tuple[int, ...]]:
    """Return properties of files that change when one is written to or exchanged."""
    states = map(os.stat, files)
    return [(state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for state in states]
