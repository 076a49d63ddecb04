"""Find the image series of a folder, and report its other files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from monai_vit3d.data.dicom_signature import DICOM_SUFFIXES, HEAD_BYTES
from monai_vit3d.data.errors import DatasetError, ImageError
from monai_vit3d.data.passed_over import PassedOver, by_reason

from .headers import element, element_number, read_header
from .kinds import is_cut_image, is_survey, passed_over_for

if TYPE_CHECKING:
    from pydicom import Dataset

_TAGS = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType", "Rows"]
_TAGS += ["NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "SharedFunctionalGroupsSequence"]
_TAGS += ["SamplesPerPixel", "PhotometricInterpretation", "StudyInstanceUID"]
_Key = tuple[str, ...]  # a SeriesInstanceUID; without one, an empty text and other attributes that separate series


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series.

    Args:
        uid: SeriesInstanceUID, empty if an anonymiser has blanked it; it identifies the patient's examination: not for
            file names or reports.
        number: SeriesNumber, if there is one.
        name: for file names: it contains nothing that was typed at the scanner but the series' number.
        files: sorted by name.
        images: SOPInstanceUIDs.
        warnings: a sentence for each oddity of the folder.
    """

    uid: str
    number: int | None
    name: str
    files: tuple[Path, ...]
    images: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderScan:
    """Content of a folder.

    Args:
        series: by SeriesNumber, then UID; series without a number come last.
        passed_over: files that belong to none of them: DICOM other than volumes (reports, screenshots, scouts), and
            files that are named like slices but are not DICOM.
    """

    series: tuple[Series, ...]
    passed_over: tuple[PassedOver, ...]


def find_series(folder: str | Path) -> list[Series]:
    """Find the image series whose files lie directly in a folder, as :func:`scan_folder` does.

    Raises:
        DatasetError: no such folder.
        ImageError: no series in it; the message lists the other files.
    """
    scan = scan_folder(folder)
    if scan.series:
        return list(scan.series)
    raise ImageError(
        f"{Path(folder)}: no DICOM image volume in it{_listed(scan.passed_over)}. Give the folder of a CT, MR or PET "
        "series."
    )


def _listed(passed_over: Sequence[PassedOver]) -> str:
    """List files that were passed over in brackets, by reason; empty if there are none."""
    parts = [
        f"{paths[0].name}{f' and {len(paths) - 1} more' if paths[1:] else ''}: {reason}"
        for reason, paths in by_reason(passed_over).items()
    ]
    return f" ({'; '.join(parts[:5])})" if parts else ""


def scan_folder(folder: str | Path) -> FolderScan:
    """Sort the files that lie directly in a folder into series; only headers are read.

    File names and preambles do not matter; hidden files are skipped. Files without a SeriesInstanceUID are one series
    for each study, modality and SeriesNumber. A damaged file goes to its series, which then cannot be read.

    Raises:
        DatasetError: no such folder.
        ImageError: pydicom is missing, or a file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder. Give the folder that holds the series' files.")
    sorting = _Sorting()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "."):
        sorting.add(path)
    return sorting.end()


@dataclass
class _Sorting:
    """Sorts files into series."""

    scans: dict[_Key, list[tuple[Path, Dataset]]] = field(default_factory=dict)
    other: list[Path] = field(default_factory=list)
    damaged: list[tuple[str, PassedOver]] = field(default_factory=list)  # with the UID, if it could be read
    passed_over: list[PassedOver] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)  # files that may have been slices

    def add(self, path: Path) -> None:
        """Sort one file."""
        try:
            header = read_header(path, _TAGS)
        except ImageError as error:
            if isinstance(error.__cause__, ImportError | OSError):
                raise
            self.damaged.append(("", PassedOver(path, "damaged DICOM")))
            return
        if header is None:
            self.other.append(path)
            return
        uid = str(element(header, "SeriesInstanceUID") or "")
        if is_cut_image(header):
            self.damaged.append((uid, PassedOver(path, "DICOM that is cut off or damaged")))
        elif reason := passed_over_for(header):
            self.passed_over.append(PassedOver(path, reason))
        else:
            other_key = [str(element(header, name)) for name in ("StudyInstanceUID", "Modality", "SeriesNumber")]
            self.scans.setdefault((uid,) if uid else ("", *other_key), []).append((path, header))

    def end(self) -> FolderScan:
        """Return the series, once all files are sorted."""
        self._drop_scouts()
        damaged = self._damaged_files()
        self._pass_over_others()
        numbers = {key: _number(headers[0][1]) for key, headers in self.scans.items()}
        shared = Counter(numbers.values())
        series = [
            _series(key[0], numbers[key], shared[numbers[key]] > 1, files, damaged.get(key, []))
            for key, files in self.scans.items()
        ]
        if self.suspicious:
            names = ", ".join([*self.suspicious[:5], *(["..."] if self.suspicious[5:] else [])])
            warning = f"not read: {names}; a slice may be missing"
            series = [replace(one, warnings=(warning,)) for one in series]
        series.sort(key=lambda s: (s.number is None, s.number or 0, s.uid))
        return FolderScan(tuple(series), tuple(sorted(self.passed_over, key=lambda file: file.path)))

    def _damaged_files(self) -> dict[_Key, list[Path]]:
        """Assign damaged files to series; pass over those that may belong to several."""
        damaged: dict[_Key, list[Path]] = {}
        for uid, file in self.damaged:
            keys = [key for key in self.scans if uid and key[0] == uid] or list(self.scans)
            if len(keys) == 1:
                damaged.setdefault(keys[0], []).append(file.path)
            else:
                self.passed_over.append(file)
                self.suspicious.append(f"{file.path.name} ({file.reason})")
        return damaged

    def _drop_scouts(self) -> None:
        """Pass over scouts, in series of their own or among slices, and single slices."""
        for key, files in list(self.scans.items()):
            scouts = [path for path, header in files if _is_localizer(header)]
            slices = [(path, header) for path, header in files if path not in scouts]
            reason = "a scout (localizer)"
            if not scouts and len(files) == 1 and not _has_slices(files[0][1]) and not self._has_damaged(key[0]):
                scouts, slices, reason = [files[0][0]], [], "1 slice; a volume needs two or more"
            elif not scouts and is_survey([header for _, header in files]):
                scouts, slices = [path for path, _ in files], []
                reason = "a scout or radial planes: a few slices of each orientation"
            self.passed_over += [PassedOver(path, reason) for path in scouts]
            if slices:
                self.scans[key] = slices
            else:
                del self.scans[key]

    def _has_damaged(self, uid: str) -> bool:
        """Return whether a damaged file may belong to a series."""
        return any(own == uid or len(self.scans) == 1 for own, _ in self.damaged)

    def _pass_over_others(self) -> None:
        """Pass over files that are named like slices but are not DICOM."""
        suffixes = {path.suffix.lower() for files in self.scans.values() for path, _ in files}
        for path in self.other:
            size, suffix = path.stat().st_size, path.suffix.lower()
            short = size < HEAD_BYTES
            if suffix not in {*DICOM_SUFFIXES, *suffixes}:
                continue
            reason = f"{size} bytes, too short for DICOM" if short else "no DICOM"
            self.passed_over.append(PassedOver(path, reason))
            if suffix in DICOM_SUFFIXES or short:
                self.suspicious.append(f"{path.name} ({reason})")


def describe_series(series: Series) -> str:
    """Name a series in a message: without its UID, and with no more of the path than the folder's name."""
    return f"{series.files[0].parent.name}, {series.name}"


def _series(
    uid: str, number: int | None, shared: bool, files: Sequence[tuple[Path, Dataset]], damaged: Sequence[Path]
) -> Series:
    paths = sorted([*(path for path, _ in files), *damaged])
    images = frozenset(str(element(header, "SOPInstanceUID") or path) for path, header in files)
    return Series(uid, number, _name(number, uid, shared), tuple(paths), images)


def _is_localizer(header: Dataset) -> bool:
    kinds = element(header, "ImageType") or ()
    return bool({"LOCALIZER", "SCOUT"} & {*([kinds] if isinstance(kinds, str) else kinds)})


def _has_slices(header: Dataset) -> bool:
    kinds = element(header, "ImageType") or ()
    return (element_number(header, "NumberOfFrames") or 1) > 1 or "MOSAIC" in kinds


def _number(header: Dataset) -> int | None:
    value = element_number(header, "SeriesNumber")
    return None if value is None else int(value)


def _name(number: int | None, uid: str, shared: bool) -> str:
    digest = hashlib.sha256(uid.encode()).hexdigest()[:8]
    if number is None:
        return f"series-{digest}"
    return f"series-{number:03d}-{digest}" if shared else f"series-{number:03d}"
