"""Make paths absolute, show them, and recognise DICOM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from monai_vit3d.data.dicom_signature import DICOM_SUFFIXES, HEAD_BYTES, has_dicom_signature


def some(names: Sequence[str], between: str = ", ") -> str:
    """Join the first five names, and say how many more there are."""
    return between.join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def absolute(path: Path) -> Path:
    """Make a path absolute; links stay as they are."""
    # behind a link "..", to the system, is the parent of its target: only realpath knows that
    return Path(os.path.realpath(path) if ".." in path.parts else os.path.abspath(path))


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its first bytes, whatever its name; by its name if it cannot be read."""
    if path.name == "DICOMDIR" or not os.path.isfile(path):
        return False
    try:
        with path.open("rb", buffering=0) as file:
            return has_dicom_signature(file.read(HEAD_BYTES))
    except OSError:
        return path.suffix.lower() in DICOM_SUFFIXES  # so that the run reports it


def holds_dicom(folder: Path) -> bool:
    """Return whether DICOM files lie directly in a folder."""
    return os.access(folder, os.R_OK) and any(map(is_dicom, folder.iterdir()))
