"""Finding the image series of a folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DatasetError, ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

# not images of a patient in space, though they have pixels: SEG, secondary captures, RT dose and image
_NO_SCAN = ("1.2.840.10008.5.1.4.1.1.66.", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.481.")
_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR, whatever its name


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series.

    Args:
        uid: SeriesInstanceUID; it identifies the patient's examination: not for file names or reports.
        number: SeriesNumber, if it has one.
        name: for file names: nothing that was typed at the scanner, other than its series' number.
        files: sorted by name.
    """

    uid: str
    number: int | None
    name: str
    files: tuple[Path, ...]


def find_series(folder: str | Path) -> list[Series]:
    """The image series whose files lie directly in a folder; only headers are read.

    Files that are not DICOM are passed over, and so are a DICOMDIR, objects without pixels (structure sets, reports,
    presentation states) and SEG, RT dose and secondary captures.

    Args:
        folder: where the files are; their names do not matter, but hidden files are not looked at.

    Returns:
        By SeriesNumber, then UID; series without a number come last.

    Raises:
        DatasetError: no such folder.
        ImageError: no image in it, a file that is damaged or cut off, or pydicom is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder. Give the folder that holds the series' files.")
    files: dict[str, list[Path]] = {}
    numbers: dict[str, int | None] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "."):
        header = read_header(path, ["SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Rows"])
        if header is None or not _is_scan(header, path):
            continue
        uid = str(header.SeriesInstanceUID)
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


def element(header: Dataset, name: str) -> Any:
    """Its value; None if it is not there, empty, or not to be made out."""
    try:
        value = header.get(name)
    except Exception:  # elements are parsed when asked for, and damaged ones raise what they like
        return None
    return None if value == "" else value


def _is_scan(header: Dataset, path: Path) -> bool:
    kind = element(header.file_meta, "MediaStorageSOPClassUID") or element(header, "SOPClassUID")
    if kind == _DIRECTORY:
        return False
    whole = element(header, "SeriesInstanceUID") is not None
    if whole and "Rows" in header:
        return not str(kind).startswith(_NO_SCAN)
    # pydicom reads a file that is cut off as far as it goes, without a word
    if not whole or (kind and kind.name.endswith("Image Storage")):
        what = "Rows" if whole else "SeriesInstanceUID"
        raise ImageError(f"{path.name}: no {what}; the file is cut off or damaged. Copy it again or remove it.")
    return False


def shown(series: Series) -> str:
    """A series in a message: no UID, and no more of the path than the folder's name."""
    return f"{series.files[0].parent.name}, {series.name}"


def _number(header: Dataset) -> int | None:
    try:
        return int(element(header, "SeriesNumber"))
    except (TypeError, ValueError):  # none, no number
        return None


def _name(number: int | None, uid: str, shared: bool) -> str:
    digest = hashlib.sha256(uid.encode()).hexdigest()[:8]
    if number is None:
        return f"series-{digest}"
    return f"series-{number:03d}-{digest}" if shared else f"series-{number:03d}"
