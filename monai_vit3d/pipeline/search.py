"""Search folders for images, and say why each other file is passed over."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from monai_vit3d.data.dicom_signature import DICOM_SUFFIXES
from monai_vit3d.data.earlier_outputs import written_files
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.formats import foreign_format, partner
from monai_vit3d.data.label_names import is_label_folder, is_label_name
from monai_vit3d.data.passed_over import PassedOver
from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import READERS, reader_for, without_suffix

from .paths import is_dicom

HIDDEN = "hidden"
WRITTEN = "written by an earlier run, as its run.json says (include_labels=True takes them as images)"
LABELS = "labels, masks or maps by name or folder (include_labels=True takes them as images)"
NO_SCANS = "outside of sub-*/anat and sub-*/ct of a BIDS data set"
NO_IMAGE = "no image by name"
DIRECTORY = "a DICOMDIR, an index of other files"
NO_DICOM = "named as DICOM, but empty, damaged or something else; copy the file again"
SAME_NAME = "of the same name as a NIfTI file beside it, which was taken"
EMPTY = "a folder with an image's name and nothing in it"

_BIDS_FOLDER = re.compile(r"sub-[^/]+(/ses-[^/]+)?(/(anat|ct))?")


def bids_root(folder: Path) -> Path | None:
    """Find the BIDS data set that a folder is, or that it is a subject, session or anat folder of."""
    for root in (folder, *folder.parents):
        if os.path.isfile(root / "dataset_description.json"):
            inside = folder.relative_to(root).parts
            return root if not inside or inside[0].startswith("sub-") else None
    return None


def bids_suffix(path: Path) -> str:
    """Return the last word of a file's name: ``T1w`` of ``sub-01_T1w.nii.gz``."""
    return without_suffix(path.name).split("_")[-1]


def kind_by_name(path: Path) -> str:
    """Name what a file is that is no image of a case, and the program that converts it where there is one."""
    if path.name == "DICOMDIR":
        return DIRECTORY
    if path.suffix.lower() in DICOM_SUFFIXES:
        return NO_DICOM
    if foreign := foreign_format(path.name):
        kind, tool = foreign
        return f"{kind}, which {tool} converts"
    return NO_IMAGE


class Search:
    """Search folders, and keep a list of what is passed over.

    Args:
        skip: real path of OUT, which is not entered.
        include_labels: whether labels and the outputs of earlier runs count as images.
        suffixes: last words of the names of images to take; none takes all.

    Attributes:
        passed_over: what was no image of a case so far.
    """

    def __init__(self, skip: str, include_labels: bool = False, suffixes: Sequence[str] = ()) -> None:
        self.skip, self.include_labels, self.suffixes = skip, include_labels, tuple(suffixes)
        self.passed_over: list[PassedOver] = []

    def tree(self, top: Path) -> Iterator[tuple[Path, bool]]:
        """Yield every image of a folder to the bottom, and every folder with DICOM files directly in it (True)."""
        for folder, files in self._walk(top, lambda folder: True):
            images, others = self._images(files, top)
            yield from ((file, False) for file in images)
            dicom = {file for file in others if is_dicom(file)}
            if dicom:
                yield folder, True
            for file in others:
                if file not in dicom:
                    self._pass_over([file], kind_by_name(file))

    def bids(self, top: Path, root: Path) -> Iterator[Path]:
        """Yield every scan in ``top``, which is the BIDS data set ``root`` or a folder of it."""

        def enter(folder: Path) -> bool:
            return bool(_BIDS_FOLDER.fullmatch(folder.relative_to(root).as_posix()))

        for folder, files in self._walk(top, enter):
            scans = folder.name in ("anat", "ct") and enter(folder)
            images, others = self._images(files, top)
            if scans:
                yield from images
            else:
                self._pass_over(images, NO_SCANS)
            for file in others:
                self._pass_over([file], kind_by_name(file))

    def _images(self, files: Sequence[Path], top: Path) -> tuple[list[Path], list[Path]]:
        """Split a folder's files into images and others; labels and the like are passed over."""
        images, others = [], []
        nifti_names = {without_suffix(file.name).lower() for file in files if reader_for(file) is READERS[0]}
        for file in files:
            if file.name.lower().endswith((".hdr", ".hdr.gz")) and partner(file) in files:
                continue  # of a pair, which is one case
            if not _is_image(file):
                others.append(file)
            elif not self.include_labels and _is_label(file, top):
                self._pass_over([file], LABELS)
            elif self.suffixes and bids_suffix(file) not in self.suffixes:
                self._pass_over([file], f"another suffix than {', '.join(map(printable, self.suffixes))}")
            elif reader_for(file) is not READERS[0] and without_suffix(file.name).lower() in nifti_names:
                self._pass_over([file], SAME_NAME)
            else:
                images.append(file)
        return images, others

    def _walk(self, top: Path, enter: Callable[[Path], bool]) -> Iterator[tuple[Path, list[Path]]]:
        """Yield every folder with its files, without hidden ones and an earlier run's; each once, as links may loop."""
        seen, todo, written = {self.skip}, deque([top]), set[str]()
        while todo:
            folder = todo.popleft()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            try:
                names = sorted(os.listdir(folder))
            except OSError as error:
                raise UsageError(
                    f"{printable(folder)}: cannot be read ({error.strerror}). Make it readable."
                ) from error
            if not self.include_labels:
                written |= written_files(real, names)
            self._pass_over((folder / name for name in names if name.startswith(".")), HIDDEN)
            paths = [folder / name for name in names if not name.startswith(".")]
            folders = {path: os.path.islink(path) for path in paths if os.path.isdir(path)}
            self._pass_over((path for path in folders if not enter(path)), NO_SCANS)
            # links last: what lies in a folder goes by that folder's name, not by a link's
            todo.extendleft(path for path, link in folders.items() if not link and enter(path))
            todo.extend(path for path, link in folders.items() if link and enter(path))
            files = [path for path in paths if path not in folders]
            old = {path for path in files if os.path.join(real, path.name) in written}
            self._pass_over(sorted(old), WRITTEN)
            if not names and reader_for(folder) is not None:
                self._pass_over([folder], EMPTY)
            yield folder, [path for path in files if path not in old]

    def _pass_over(self, paths: Iterable[Path], reason: str) -> None:
        self.passed_over += [PassedOver(path, reason) for path in paths]


def _is_image(path: Path) -> bool:
    # a dead link counts, as in a DataLad data set without its contents: the run then says that the file is missing
    return reader_for(path) is not None and (os.path.isfile(path) or not os.path.exists(path))


def _is_label(file: Path, top: Path) -> bool:
    folders = (top.name, *file.relative_to(top).parts[:-1])
    return is_label_name(without_suffix(file.name)) or is_label_folder(folders)
