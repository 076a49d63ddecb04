"""Find the cases in what the user gave: files, folders, BIDS data sets, DICOM folders, lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from monai_vit3d.data.case_files import group_channels
from monai_vit3d.data.dicom_signature import DICOM_SUFFIXES
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.formats import partner
from monai_vit3d.data.passed_over import PassedOver
from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import reader_for

from .case import Case
from .lists import read_csv, read_json
from .passed_over_summary import describe_passed_over
from .paths import absolute, is_dicom, some
from .search import NO_IMAGE, Search, bids_root, bids_suffix, kind_by_name

_TAKEN = (
    "a .nii or .nii.gz file (or .mgz, .mgh, .nrrd, .mha, or .img with its .hdr), a folder of them, a BIDS data set, a "
    "folder of DICOM files, or a .csv or .json list"
)


@dataclass(frozen=True)
class Inputs:
    """The cases in the inputs, and the files that are none.

    Args:
        cases: in the order given.
        passed_over: all other files and folders in them, each with its reason.
        warnings: what is odd about the cases as a whole, a sentence each.
    """

    cases: tuple[Case, ...]
    passed_over: tuple[PassedOver, ...] = ()
    warnings: tuple[str, ...] = ()


def find_images(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
    channels: int = 1,
) -> Inputs:
    """Find the cases of all inputs, in the order given; those of a folder sorted; the same images once.

    A folder is searched to the bottom, through links, without hidden files and folders, files that an earlier run
    wrote, and labels by their name or folder. A BIDS data set, or a ``sub-*`` folder of one, gives the scans under
    ``anat`` and ``ct`` (https://bids-specification.readthedocs.io). All that is no case is passed over by name. Files
    that are given one by one, or in a list, are cases whatever they are called. Of a bundle with several channels,
    files NAME_0000, NAME_0001, ... that no list names are one case, called NAME.

    Args:
        inputs: one or several images of the formats of ``READERS``, folders, BIDS data sets, folders with DICOM files,
            and ``.csv`` or ``.json`` lists.
        output: the folder that will be written to; it is passed over where it lies inside an input.
        include_labels: whether labels and the outputs of earlier runs count as images.
        suffixes: last words of the names of images to take from folders, such as ``T1w``; none takes all.
        channels: how many each case has.

    Raises:
        UsageError: an input is missing, empty, unreadable or of another kind, or a list is malformed. Files that a list
            names need not exist: they are for the run to report.
    """
    given = [Path(inputs)] if isinstance(inputs, str | os.PathLike) else [Path(path) for path in inputs]
    if not given:
        raise UsageError(f"no input; expected {_TAKEN}.")
    missing = [printable(path) for path in given if not os.path.exists(path)]
    if missing:
        raise UsageError(f"{some(missing)}: no such file or folder. Check the spelling; expected {_TAKEN}.")
    search = Search(os.path.realpath(output), include_labels, suffixes)
    bounded = [pair for path in given for pair in _cases(absolute(path), search)]
    bounded = _with_channels(bounded, channels)
    folders = {folder for folder, case in bounded if not case.relative.name}
    shared = Path(os.path.commonpath(folders)) if folders else Path()
    once: dict[tuple[tuple[str, ...], PurePosixPath], Case] = {}
    for _, case in bounded:
        once.setdefault((tuple(map(_place, case.images)), case.relative), case)
    cases = tuple(case if case.relative.name else _placed_below(shared, case) for case in once.values())
    images = {image for case in cases for image in case.images}
    passed_over = tuple(file for file in search.passed_over if file.path not in images)
    return Inputs(cases, passed_over, (*_several_suffixes(cases), *_missing_channels(cases)))


def _place(path: Path) -> str:
    """Resolve the links of a path's folder: two paths to one name are one, two links to one file (DataLad) are not."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _placed_below(shared: Path, case: Case) -> Case:
    """Name a case by its path below the folder that all inputs share; a DICOM folder that is this one, by its name."""
    image = case.named_by or case.images[0]
    relative = PurePosixPath(image.relative_to(shared).as_posix())
    return replace(case, relative=relative if relative.name else PurePosixPath(image.name))


def _cases(path: Path, search: Search) -> list[tuple[Path, Case]]:
    """Find the cases of one input, each with the folder that the shared folder must contain."""
    if os.path.isdir(path):
        return _cases_in_folder(path, search)
    if reader_for(path) is not None:
        return [(path.parent, Case((path,)))]
    if (image := partner(path)) is not None:  # the header of a pair
        return [(image.parent, Case((image,)))]
    suffix = path.suffix.lower()
    if suffix in (".csv", ".json"):
        listed = read_csv(path) if suffix == ".csv" else read_json(path)
        return [(case.images[0].parent, case) for case in listed]
    if suffix in DICOM_SUFFIXES or is_dicom(path):
        raise UsageError(
            f"{printable(path)}: one DICOM file; expected a series. Give its folder, {printable(path.parent)}."
        )
    kind = kind_by_name(path)
    raise UsageError(f"{printable(path)}: {'a file of another kind' if kind == NO_IMAGE else kind}; expected {_TAKEN}.")


def _cases_in_folder(folder: Path, search: Search) -> list[tuple[Path, Case]]:
    if os.path.realpath(folder) == search.skip:
        raise UsageError(
            f"{printable(folder)}: input and OUT are one folder, so that a second run would take outputs for images. "
            "Give another OUT; it may lie inside this folder."
        )
    root, before = bids_root(folder), len(search.passed_over)
    if root is None:
        cases = [(folder, Case((path,), dicom=dicom)) for path, dicom in search.tree(folder)]
    else:
        cases = [(root, Case((path,), bids=True)) for path in search.bids(folder, root)]
    if not cases:
        looked_for = "no .nii, .nii.gz or DICOM file in it or below" if root is None else "no scan in sub-*/anat or /ct"
        head, *reasons = describe_passed_over(search.passed_over[before:]) or [""]
        rest = f"; {head} {'; '.join(reasons)}" if reasons else ""
        raise UsageError(
            f"{printable(folder)}: {looked_for} (hidden ones and OUT do not count){rest}. Give a folder with some."
        )
    return sorted(cases, key=lambda pair: pair[1].images[0].parts)


def _with_channels(bounded: list[tuple[Path, Case]], channels: int) -> list[tuple[Path, Case]]:
    """Make one case of the files that are its channels; those of lists, BIDS and DICOM stay as they are."""
    loose = {case.images[0]: pair for pair in bounded for case in [pair[1]] if _may_be_channel(case)}
    grouped = {case.paths[0]: case for case in group_channels(loose, channels) if len(case.paths) > 1}
    members = {path: case for case in grouped.values() for path in case.paths}
    pairs: list[tuple[Path, Case]] = []
    for folder, case in bounded:
        group = members.get(case.images[0]) if _may_be_channel(case) else None
        if group is None:
            pairs.append((folder, case))
        elif group.paths[0] in grouped:
            pairs.append((folder, Case(group.paths, named_by=group.name)))
            del grouped[group.paths[0]]
    return pairs


def _may_be_channel(case: Case) -> bool:
    return not (case.listed or case.bids or case.dicom)


def _missing_channels(cases: Sequence[Case]) -> list[str]:
    """Warn of files that cases of several channels lack."""
    missing = [path for case in cases if case.named_by for path in case.images if not os.path.lexists(path)]
    if not missing:
        return []
    return [f"missing, so their cases will fail: {some([printable(path) for path in missing])}"]


def _several_suffixes(cases: Sequence[Case]) -> list[str]:
    """Warn if subjects or sessions of BIDS have scans of several kinds, such as T1w and FLAIR."""
    kinds: dict[PurePosixPath, set[str]] = {}
    for case in cases:
        if case.bids:
            kinds.setdefault(case.relative.parent, set()).add(bids_suffix(case.images[0]))
    several = [kind for kind in kinds.values() if len(kind) > 1]
    if not several:
        return []
    names = sorted(set.union(*several))
    subjects = f"{len(several)} BIDS subjects or sessions have" if len(several) > 1 else "1 BIDS subject or session has"
    return [
        f"{subjects} scans of several suffixes ({', '.join(map(printable, names))}), and each scan is a case; "
        f"suffixes={printable(names[-1])} takes those of one kind"
    ]
