"""Finding the image series of a folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DatasetError, ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

# not images of a patient in space, though they have pixels: SEG, secondary captures, RT dose and image
_NO_SCAN = ("1.2.840.10008.5.1.4.1.1.66.", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.481.")


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series.

    Args:
        uid: SeriesInstanceUID; it identifies the patient's examination: not for file names or reports.
        number: SeriesNumber, if it has one.
        description_free_name: for file names: nothing that was typed at the scanner, other than its series' number.
        files: sorted by name.
    """

    uid: str
    number: int | None
    description_free_name: str
    files: tuple[Path, ...]


def find_series(folder: str | Path) -> list[Series]:
    """The image series whose files lie directly in a folder; only headers are read.

    Files that are not DICOM are passed over, and so are objects without pixels (structure sets, reports, presentation
    states) and SEG, RT dose and secondary captures.

    Args:
        folder: where the files are; their names do not matter, hidden files and DICOMDIR are not looked at.

    Returns:
        By SeriesNumber, then UID; series without a number come last.

    Raises:
        DatasetError: no such folder.
        ImageError: no image in it, a ``.dcm`` or ``.ima`` file that is damaged, or pydicom is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder. Give the folder that holds the series' files.")
    files: dict[str, list[Path]] = {}
    numbers: dict[str, int | None] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "." and p.name != "DICOMDIR"):
        header = read_header(path, ["SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Rows"])
        if header is None or not _is_scan(header, path):
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        files.setdefault(uid, []).append(path)
        numbers.setdefault(uid, _number(header))
    if not files:
        raise ImageError(
            f"{folder}: no DICOM image in it that has a place in space. Give the folder of a CT, MR or PET."
        )
    shared = Counter(numbers.values())
    found = [Series(uid, n, _name(n, uid, shared[n] > 1), tuple(files[uid])) for uid, n in numbers.items()]
    return sorted(found, key=lambda s: (s.number is None, s.number or 0, s.uid))


def read_header(path: Path, tags: list[str] | None = None) -> Dataset | None:
    """A file's elements before the pixels; None if it is not DICOM and does not say that it were."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise ImageError(f"{path.name}: reading DICOM needs pip install monai-vit3d[dicom]") from error
    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=tags)
    except InvalidDicomError as error:
        if path.suffix.lower() not in (".dcm", ".ima"):
            return None
        raise ImageError(f"{path.name}: not a DICOM file, or damaged ({error}). Copy it again or remove it.") from error
    except Exception as error:  # pydicom's parser has no class for what damaged bytes make it raise
        raise ImageError(f"{path.name}: damaged ({type(error).__name__}). Copy it again or remove it.") from error


def _is_scan(header: Dataset, path: Path) -> bool:
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    if "Rows" in header:
        return not str(kind).startswith(_NO_SCAN)
    if kind and kind.name.endswith("Image Storage"):  # pydicom reads a file that is cut off as far as it goes
        raise ImageError(f"{path.name}: {kind.name} without Rows; the file is cut off. Copy it again or remove it.")
    return False


def shown(series: Series) -> str:
    return f"{series.files[0].parent.name}, {series.description_free_name}"


def _number(header: Dataset) -> int | None:
    try:
        return int(header.SeriesNumber)
    except (AttributeError, TypeError, ValueError):  # none, empty, no number
        return None


def _name(number: int | None, uid: str, shared: bool) -> str:
    digest = hashlib.sha256(uid.encode()).hexdigest()[:8]
    if number is None:
        return f"series-{digest}"
    return f"series-{number:03d}-{digest}" if shared else f"series-{number:03d}"
