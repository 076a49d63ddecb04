"""Separate DICOM objects that belong to a volume from others, such as reports, scouts and screenshots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .headers import element

if TYPE_CHECKING:
    from pydicom import Dataset

_IMAGES = "1.2.840.10008.5.1.4.1.1."
# not images of a patient in space, though they may have pixels: SEG, secondary captures, RT dose and image
_NO_SCAN = tuple(f"{_IMAGES}{part}" for part in ("66.", "7", "481."))
# read as volumes: CT, MR and PET, enhanced and converted ones included
_SERVED = tuple(f"{_IMAGES}{part}" for part in ("2", "4", "128", "130"))
_UNKNOWN = "DICOM of an unknown kind"
_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR, whatever its name
_SURVEY_SLICES = 15  # of a plane: a volume has more


def passed_over_for(header: Dataset) -> str:
    """Say why an object is not part of a volume, by its class; empty if it may be.

    Args:
        header: with SOPClassUID, Rows, SamplesPerPixel, PhotometricInterpretation, ImagePositionPatient and
            SharedFunctionalGroupsSequence.
    """
    kind, name = sop_class(header)
    if kind == _DIRECTORY:
        return "a DICOMDIR, an index of other files"
    if "Rows" not in header:
        return f"{name}: no image"
    if kind and kind.startswith(_NO_SCAN):
        return f"{name}: not a scan"
    if element(header, "SamplesPerPixel") == 3 or element(header, "PhotometricInterpretation") == "PALETTE COLOR":
        return "a colour image; expected grey values"
    has_place = "ImagePositionPatient" in header or "SharedFunctionalGroupsSequence" in header
    if kind and not _is_served(kind) and not has_place:
        return f"{name}: no volume with a place in space; CT, MR and PET volumes are read"
    return ""


def sop_class(header: Dataset) -> tuple[str, str]:
    """Return an object's SOP class, empty if it has none, and its name in the standard."""
    from pydicom.uid import UID, UID_dictionary

    kind = str(element(header.file_meta, "MediaStorageSOPClassUID") or element(header, "SOPClassUID") or "")
    return kind, UID(kind).name if kind in UID_dictionary else _UNKNOWN


def is_cut_image(header: Dataset) -> bool:
    """Return whether a file is cut off: an image without Rows, or one of unknown class without a SeriesInstanceUID."""
    if "Rows" in header:
        return False
    _, name = sop_class(header)
    return "Image Storage" in name or (name == _UNKNOWN and element(header, "SeriesInstanceUID") is None)


def is_survey(headers: Sequence[Dataset]) -> bool:
    """Return whether the orientations of a series are those of a scout or of radial planes.

    A scout has two or three orientations, nearly at right angles, each with about the same small number of slices; in
    radial planes and some scouts each slice has its own.
    """
    normals: list[tuple[float, ...]] = []
    for header in headers:
        try:
            along, down = np.array(element(header, "ImageOrientationPatient"), np.float64).reshape(2, 3)
        except (TypeError, ValueError):
            return False
        normal = np.cross(along, down)
        normals.append(tuple(np.round(normal * np.sign(normal[np.abs(normal).argmax()]), 1)))
    counts = Counter(normals)
    if len(counts) > 2 and max(counts.values()) == 1:
        return True
    planes = np.array(list(counts))
    apart = len(planes) in (2, 3) and np.abs(planes @ planes.T - np.diag(np.diag(planes @ planes.T))).max() < 0.7
    return bool(apart and max(counts.values()) <= min(_SURVEY_SLICES, 2 * min(counts.values())))


def _is_served(kind: str) -> bool:
    return any(kind == served or kind.startswith(f"{served}.") for served in _SERVED)
