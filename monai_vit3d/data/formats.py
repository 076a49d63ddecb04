"""Name image formats by file name, and the programs that convert them to NIfTI."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ImageError

# suffixes: the format, and a program that converts it; ".gz" after them does not matter
CONVERTERS = {
    (".hdr", ".img"): ("half of an Analyze or NIfTI pair", "FSL's fslchfiletype NIFTI_GZ, or nibabel"),
    (".mgz", ".mgh"): ("FreeSurfer's format", "FreeSurfer's mri_convert"),
    (".nhdr", ".mhd", ".nrrd", ".mha"): ("NRRD or MetaImage", "3D Slicer or SimpleITK"),
    (".dcm", ".ima"): ("DICOM", "dcm2niix"),
    (".mnc",): ("MINC", "mnc2nii"),
    (".head", ".brik"): ("AFNI's format", "AFNI's 3dAFNItoNIfTI"),
    (".par", ".rec"): ("Philips PAR/REC", "dcm2niix, or nibabel's parrec2nii"),
    (".nii.bz2",): ("NIfTI compressed by bzip2", "bunzip2"),
    (".nii.xz", ".nii.zst", ".nii.zip"): ("NIfTI in an archive that is not gzip", "unxz, zstd -d or unzip"),
}


def foreign_format(name: str) -> tuple[str, str] | None:
    """Return the format of a file that is not NIfTI and a program that converts it; None for other names.

    Args:
        name: of the file, in any letter case.
    """
    name = name.lower().removesuffix(".gz")
    return next((row for suffixes, row in CONVERTERS.items() if name.endswith(suffixes)), None)


def unknown_name(path: str | os.PathLike[str]) -> ImageError:
    """Build the error for a file whose name belongs to no format that is read.

    Args:
        path: the file.
    """
    if foreign := foreign_format(os.path.basename(path)):
        kind, tool = foreign
        return ImageError(f"{path}: {kind}; expected .nii or .nii.gz. Convert it with {tool}.")
    return ImageError(f"{path}: no image by its name; expected .nii or .nii.gz. Convert or rename it.")


def partner(path: str | Path) -> Path | None:
    """Find the header of a pair's ``.img``, or the ``.img`` of its header; None if it is absent, or for other files."""
    path = Path(path)
    ends = {".img": ".hdr", ".hdr": ".img"}
    match = re.search(r"(\.img|\.hdr)(\.gz)?\Z", path.name, re.IGNORECASE)
    if match is None:
        return None
    other = ends[match[1].lower()]
    names = (path.name[: match.start()] + end + gz for end in (other, other.upper()) for gz in ("", ".gz"))
    return next((path.with_name(name) for name in names if os.path.isfile(path.with_name(name))), None)
