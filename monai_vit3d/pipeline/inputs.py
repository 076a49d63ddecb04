"""What the user gave (files, folders, BIDS data sets, DICOM folders, lists), turned into the images of each case."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..data.errors import UsageError
from .lists import Listed, read_csv, read_json
from .paths import DICOM_SUFFIXES, NIFTI, absolute, is_dicom, shown, some, without_suffix

_BIDS_FOLDER = re.compile(r"sub-[^/]+(/ses-[^/]+)?(/(anat|ct))?")
_BIDS_LABELS = ("mask", "dseg", "probseg", "defacemask")  # suffixes of files that are no scans
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
        """The case, named by its place below ``shared`` if the list gave it no name."""
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
    items = [item for path in given for item in _items(absolute(path), skip)]
    bases = {item.base for item in items if item.name is None}
    shared = Path(os.path.commonpath(bases)) if bases else Path()
    once: dict[tuple[tuple[str, ...], str | None], _Item] = {}
    for item in items:
        once.setdefault((tuple(map(_place, item.images)), item.name), item)
    return [item.found(shared) for item in once.values()]


def _place(path: Path) -> str:
    """One for a name reached in two ways; not for two names linked to one file, as DataLad stores equal scans."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _items(path: Path, skip: str) -> list[_Item]:
    if os.path.isdir(path):
        return _folder_items(path, skip)
    if NIFTI.search(path.name):
        return [_Item((path,), path.parent)]
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return [_listed(one) for one in read_csv(path)]
    if suffix == ".json":
        return [_listed(one) for one in read_json(path)]
    if suffix in DICOM_SUFFIXES or is_dicom(path):
        raise UsageError(f"{shown(path)}: one DICOM file; a series is needed. Give its folder, {shown(path.parent)}.")
    raise UsageError(f"{shown(path)}: a file of another kind; {_TAKEN} is needed.")


def _listed(one: Listed) -> _Item:
    return _Item(one.images, one.images[0].parent, one.name, dicom=one.dicom)


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
        if any(map(is_dicom, files)):
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
    return bool(NIFTI.search(path.name)) and (os.path.isfile(path) or not os.path.exists(path))
