"""The images of a case, hashed and read."""

from __future__ import annotations

from ..data.dicom import find_series, read_series
from ..data.errors import ImageError
from ..data.files import file_sha256
from ..data.nifti import read_grid, read_volume
from ..data.volume import Volume
from .bundle import Bundle
from .label_values import check_label_values
from .memory import check_memory
from .plan import Case
from .predict import Options


def read_case(case: Case, bundle: Bundle, options: Options, include_labels: bool = False) -> list[Volume]:
    """A case's images through the strict door, one for each channel.

    Raises:
        ImageError: one that cannot be used, that is labels by its values unless ``include_labels``, or that would not
            fit into memory.
    """
    if case.dicom:
        # a folder that could not be made out while planning says here why
        series = case.series or find_series(case.images[0])[0]
        volume = read_series(series, options.max_voxels, options.volume, options.units)
        check_memory(case.images[0], volume.grid, 1, bundle, options)
        return [volume]
    if options.units != "stored":
        raise ImageError(
            f"{case.images[0]}: --units {options.units} needs a DICOM PET; a NIfTI file says nothing of dose and "
            "weight. Give the DICOM folder, or leave out --units."
        )
    grid = read_grid(case.images[0], options.volume, options.max_voxels)
    check_memory(case.images[0], grid, len(case.images), bundle, options)
    volumes = [read_volume(path, options.volume, options.max_voxels) for path in case.images]
    return volumes if include_labels else [check_label_values(volume) for volume in volumes]


def case_sha256(case: Case) -> list[str]:
    """SHA-256 of each file that makes the case.

    Raises:
        ImageError: one that cannot be read.
    """
    files = case.images if case.series is None else case.series.files
    if case.dicom and case.series is None:
        return []
    try:
        return [file_sha256(path) for path in files]
    except OSError as error:
        for path in () if case.dicom else files:
            read_grid(path)  # the door says more, such as of a link to a file that was not fetched
        reason = error.strerror or str(error)
        raise ImageError(f"{error.filename}: cannot be read ({reason}). Give a .nii or .nii.gz file.") from error
