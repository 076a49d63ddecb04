"""Recognise and read DICOM headers without showing what they say about a patient.

pydicom's warnings quote values and UIDs; from the first file that is read here they are no longer shown, neither as
Python warnings nor in pydicom's log. Our own messages name files and attributes, and quote numbers at most.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_vit3d.data.dicom_signature import HEAD_BYTES, has_dicom_signature
from monai_vit3d.data.errors import ImageError, install_extra
from monai_vit3d.data.volume import Array

if TYPE_CHECKING:
    from pydicom import Dataset


class HeaderError(ValueError):
    """An attribute is missing or cannot be used; its text names the attribute and quotes no text of the header."""


def read_header(path: Path, tags: list[str] | None = None) -> Dataset | None:
    """Read a file's elements before the pixels.

    Args:
        path: the file.
        tags: the elements to read; None is all.

    Returns:
        The elements; None if the file is not DICOM.

    Raises:
        ImageError: the file cannot be parsed or read, or pydicom is not there.
    """
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise ImageError(
            f"{path.name}: pydicom, which reads DICOM, is not installed: {install_extra('dicom')}."
        ) from error
    hush_pydicom()
    try:
        with path.open("rb") as file:
            if not has_dicom_signature(file.read(HEAD_BYTES)):
                return None
        # force: the file may have no preamble; its signature was checked above
        return dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read ({error.strerror}). Make it readable.") from error
    except Exception as error:  # pydicom's parser has no class for what damaged bytes make it raise
        raise ImageError(f"{path.name}: damaged ({type(error).__name__}). Copy it again or remove it.") from error


def element(header: Dataset, name: str) -> Any:
    """Return an attribute's value; None if it is missing, empty, or cannot be parsed."""
    try:
        value = header.get(name)
    except Exception:  # elements are parsed on access, and damaged ones raise errors of any class
        return None
    return None if value == "" else value


def element_number(header: Dataset, name: str) -> float | None:
    """Return an attribute's finite number; None if it is missing or not a finite number."""
    try:
        value = float(element(header, name))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if np.isfinite(value) else None


def optional_number(header: Dataset, name: str) -> float | None:
    """Return an attribute's finite number; None if it is missing or blank.

    Raises:
        HeaderError: it is there, and no finite number.
    """
    value = element_number(header, name)
    if value is None and name in header and header.get_item(name).value not in (None, "", b""):
        raise HeaderError(f"{name} is not a finite number")
    return value


def element_numbers(header: Dataset, name: str, count: int) -> Array:
    """Return an attribute's numbers, (count,) float64.

    Raises:
        HeaderError: it is missing, or not as many finite numbers.
    """
    value = element(header, name)
    if value is None:
        raise HeaderError(f"{name} is missing")
    try:
        values = np.array(value, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise HeaderError(f"{name} is not {count} finite number{'s' if count > 1 else ''}")
    return values


def hush_pydicom() -> None:
    """Keep pydicom's and highdicom's warnings, which quote headers, from terminal and log.

    This installs a filter for these modules; catch_warnings is not safe if several threads read.
    """
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|monai_vit3d\.data\.dicom)(\.|$)")
    for package in ("pydicom", "highdicom"):
        logging.getLogger(package).setLevel(logging.CRITICAL)
