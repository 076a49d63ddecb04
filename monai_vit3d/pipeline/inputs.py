"""What the user gave (files, folders, BIDS data sets, DICOM folders, lists), turned into the images of each case."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.errors import UsageError

_NIFTI = re.compile(r"\.nii(\.gz)?\Z", re.IGNORECASE)
_DICOM_SUFFIXES = (".dcm", ".ima")
_BIDS_FOLDER = re.compile(r"sub-[^/]+(/ses-[^/]+)?(/(anat|ct))?")
_BIDS_LABELS = ("mask", "dseg", "probseg", "defacemask")  # suffixes of files that are no scans
_NO_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the other surrogates stand for bytes that are no UTF-8
_LIST_KEYS = ("test", "testing", "cases", "images")
_TAKEN = "a .nii or .nii.gz file, a folder of them, a BIDS data set, a folder of DICOM files, or a .csv or .json list"


@dataclass(frozen=True)
class Found:
    """One case.

    Args:
        images: absolute paths, one per channel; of a DICOM case, the folder.
        relative: where it lies below the folder that all inputs share, or the name that a list gives it.
        bids: it comes from a BIDS data set.
        dicom: its image is a folder with DICOM files directly in it.
    """

    images: tuple[Path, ...]
    relative: PurePosixPath
    bids: bool = False
    dicom: bool = False


@dataclass(frozen=True)
class _Item:
    """A case before it is known which folder all inputs share: ``base`` bounds it, unless a list gives a ``name``."""

    images: tuple[Path, ...]
    base: Path
    name: str | None = None
    bids: bool = False
    dicom: bool = False

    def found(self, shared: Path) -> Found:
        first = self.images[0]
        own = first.relative_to(shared).as_posix() if self.name is None else self.name
        # a DICOM folder that is the shared folder itself has only its name
        return Found(self.images, PurePosixPath(first.name if own == "." else own), self.bids, self.dicom)


def find_images(inputs: Sequence[str | Path], output: str | Path) -> list[Found]:
    """The cases of all inputs, in the order given; those of a folder sorted; the same images once.

    A folder is searched to the bottom, through links, without hidden files and folders. A BIDS data set, or a
    ``sub-*`` folder of one, gives the scans under ``anat`` and ``ct`` (https://bids-specification.readthedocs.io).

    Args:
        inputs: NIfTI files, folders, BIDS data sets, folders with DICOM files, and ``.csv`` or ``.json`` lists.
        output: the folder that will be written to; it is passed over where it lies inside an input.

    Raises:
        UsageError: an input is missing, empty, unreadable or of another kind, or a list is malformed. Files that a list
            names need not exist: they are for the run to report.
    """
    given = [Path(path) for path in inputs]
    if not given:
        raise UsageError(f"no input; {_TAKEN} is needed.")
    missing = [shown(path) for path in given if not os.path.exists(path)]
    if missing:
        raise UsageError(f"{some(missing)}: no such file or folder. Check the spelling; {_TAKEN} is needed.")
    skip = os.path.realpath(output)
    items = [item for path in given for item in _items(_absolute(path), skip)]
    bases = {item.base for item in items if item.name is None}
    shared = Path(os.path.commonpath(bases)) if bases else Path()
    once: dict[tuple[tuple[str, ...], str | None], _Item] = {}
    for item in items:
        once.setdefault((tuple(map(_place, item.images)), item.name), item)
    return [item.found(shared) for item in once.values()]


def without_suffix(name: str) -> str:
    """``a.b.nii.gz`` to ``a.b``; a name without ``.nii`` or ``.nii.gz`` as it is."""
    return _NIFTI.sub("", name)


def shown(path: str | Path | PurePosixPath) -> str:
    """A path on one line that any terminal can print: control characters and bytes that are no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first five, and how many more."""
    return between.join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _place(path: Path) -> str:
    """One for a name reached in two ways; not for two names linked to one file, as DataLad stores equal scans."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _absolute(path: Path) -> Path:
    # behind a link "..", to the system, is the parent of its target: only realpath knows that
    return Path(os.path.realpath(path) if ".." in path.parts else os.path.abspath(path))


def _items(path: Path, skip: str) -> list[_Item]:
    if os.path.isdir(path):
        return _folder_items(path, skip)
    if _NIFTI.search(path.name):
        return [_Item((path,), path.parent)]
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _csv_items(path)
    if suffix == ".json":
        return _json_items(path)
    if suffix in _DICOM_SUFFIXES or _is_dicom(path):
        raise UsageError(f"{shown(path)}: one DICOM file; a series is needed. Give its folder, {shown(path.parent)}.")
    raise UsageError(f"{shown(path)}: a file of another kind; {_TAKEN} is needed.")


# folders


def _folder_items(folder: Path, skip: str) -> list[_Item]:
    if os.path.realpath(folder) == skip:
        raise UsageError(
            f"{shown(folder)}: input and OUT are one folder, so that a second run would take outputs for images. "
            "Give another OUT; it may lie inside this folder."
        )
    root = _bids_root(folder)
    items = _tree_items(folder, skip) if root is None else _bids_items(folder, skip, root)
    if not items:
        looked_for = "no .nii, .nii.gz or DICOM file in it or below" if root is None else "no scan in sub-*/anat or /ct"
        raise UsageError(f"{shown(folder)}: {looked_for} (hidden ones and OUT do not count). Give a folder with some.")
    return sorted(items, key=lambda item: item.images[0].parts)


def _tree_items(top: Path, skip: str) -> list[_Item]:
    items = []
    for folder, files in _walk(top, skip, lambda folder: True):
        items += [_Item((file,), top) for file in files if _is_image(file)]
        if any(map(_is_dicom, files)):
            items.append(_Item((folder,), top, dicom=True))
    return items


def _bids_root(folder: Path) -> Path | None:
    """The BIDS data set that a folder is, or that it is a subject, session or anat folder of."""
    for root in (folder, *folder.parents):
        if os.path.isfile(root / "dataset_description.json"):
            inside = folder.relative_to(root).parts
            return root if not inside or inside[0].startswith("sub-") else None
    return None


def _bids_items(top: Path, skip: str, root: Path) -> list[_Item]:
    def enter(folder: Path) -> bool:
        return bool(_BIDS_FOLDER.fullmatch(folder.relative_to(root).as_posix()))

    scans = [
        file
        for folder, files in _walk(top, skip, enter)
        if folder.name in ("anat", "ct") and enter(folder)
        for file in files
        if _is_image(file) and without_suffix(file.name).split("_")[-1] not in _BIDS_LABELS
    ]
    return [_Item((file,), root, bids=True) for file in scans]


def _walk(top: Path, skip: str, enter: Callable[[Path], bool]) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder with its files, nothing hidden; each real folder once, so that links cannot loop."""
    seen, todo = {skip}, deque([top])
    while todo:
        folder = todo.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            paths = [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
        except OSError as error:
            raise UsageError(f"{shown(folder)}: cannot be read ({error.strerror}). Make it readable.") from error
        folders = {path: os.path.islink(path) for path in paths if os.path.isdir(path)}
        # links last: what lies in a folder goes by that folder's name, not by a link's
        todo.extendleft(path for path, link in folders.items() if not link and enter(path))
        todo.extend(path for path, link in folders.items() if link and enter(path))
        yield folder, [path for path in paths if path not in folders]


def _is_image(path: Path) -> bool:
    # a dead link counts, as in a DataLad data set without its contents: the run then says that the file is missing
    return bool(_NIFTI.search(path.name)) and (os.path.isfile(path) or not os.path.exists(path))


def _is_dicom(path: Path) -> bool:
    suffix = path.suffix.lower()
    named_so = suffix in ("", *_DICOM_SUFFIXES) or suffix[1:].isdigit()  # a UID as a name ends in a number
    if not named_so or path.name == "DICOMDIR" or not os.path.isfile(path):
        return False
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return suffix in _DICOM_SUFFIXES  # so that the run reports it


def _holds_dicom(folder: Path) -> bool:
    return os.access(folder, os.R_OK) and any(map(_is_dicom, folder.iterdir()))


# lists


def _csv_items(table: Path) -> list[_Item]:
    reader = csv.reader(io.StringIO(_text(table), newline=""), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise UsageError(f"{shown(table)}, line {reader.line_num}: not CSV ({error}). Close its quotes.") from error
    lines = [(line, cells) for line, cells in lines if any(cells)]
    if len(lines) < 2:
        raise UsageError(f"{shown(table)}: no rows. A line 'image' or 'image,name' and one for each case are needed.")
    (first, header), *body = lines
    columns = [i for i, column in enumerate(header) if column.startswith("image") and ";" not in column]
    if not columns or header.count("name") > 1:
        raise UsageError(
            f"{shown(table)}, line {first}: columns {header}; 'image', or 'image...' for each channel, is "
            "needed, and at most one 'name', with commas between."
        )
    named = header.index("name") if "name" in header else len(header)
    items = []
    for line, cells in body:
        where = f"{shown(table)}, line {line}"
        if any(cells[len(header) :]):
            raise UsageError(f"{where}: {len(cells)} cells; the header has {len(header)}. Quote a cell with commas.")
        row = [*cells, *[""] * len(header)]
        items.append(_listed([row[i] for i in columns], row[named] or None, where, table.parent))
    return items


def _json_items(table: Path) -> list[_Item]:
    text = _text(table)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown(table)}: not JSON ({error}). Correct it.") from error
    lists = [content]
    if isinstance(content, dict):
        lists = [content[key] for key in _LIST_KEYS if content.get(key)]
    if len(lists) != 1 or not isinstance(lists[0], list) or not lists[0]:
        raise UsageError(
            f"{shown(table)}: no list of cases, or several; one that is not empty is needed, alone or as the "
            f"only one of {', '.join(_LIST_KEYS)}."
        )
    return [_json_item(entry, f"{shown(table)}, entry {i}", table.parent) for i, entry in enumerate(lists[0], 1)]


def _json_item(entry: Any, where: str, folder: Path) -> _Item:
    case = entry if isinstance(entry, dict) else {"image": entry}
    images, name = case.get("image"), case.get("name")
    images = images if isinstance(images, list) else [images]
    if not images or not all(isinstance(text, str) for text in [*images, "" if name is None else name]):
        came = shown(repr(entry))[:80]
        raise UsageError(f"{where}: {came}; a path or {{'image': path or [paths], 'name': text}} is needed.")
    return _listed(images, name, where, folder)


def _listed(images: Sequence[str], name: str | None, where: str, folder: Path) -> _Item:
    unusable = [shown(text) for text in images if not text or _NO_PATH.search(text)]
    if unusable:
        raise UsageError(f"{where}: image '{unusable[0]}'; the path of a file is needed. Fill it in or leave it out.")
    paths = tuple(_absolute(folder / text) for text in images)
    for text, path in zip(images, paths):
        usable = _holds_dicom(path) and len(paths) == 1 if os.path.isdir(path) else _NIFTI.search(path.name)
        if not usable:
            raise UsageError(
                f"{where}: '{shown(text)}'; a .nii or .nii.gz file is needed for each channel, or one folder with "
                "DICOM files directly in it."
            )
    if name is not None:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or _NO_PATH.search(name):
            raise UsageError(f"{where}: name '{shown(name)}'; one below OUT is needed, such as 'a' or 'a/b'.")
        name = str(PurePosixPath(name))
    return _Item(paths, paths[0].parent, name, dicom=os.path.isdir(paths[0]))


def _text(table: Path) -> str:
    try:
        return table.read_bytes().decode("utf-8-sig")  # Excel begins its UTF-8 with a byte order mark
    except OSError as error:
        raise UsageError(f"{shown(table)}: cannot be read ({error.strerror}). Make it readable.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{shown(table)}, line {line}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
