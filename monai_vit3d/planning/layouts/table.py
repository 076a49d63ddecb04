"""Which layouts of labelled data are read, and which one a folder or file has. A new layout is a new row and file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from monai_vit3d.data.errors import DatasetError, UsageError
from monai_vit3d.planning.dataset import LabelledDataset

from .bids import is_bids, read_bids
from .case_folders import are_case_folders, read_case_folders
from .case_table import is_case_table, read_case_table
from .image_folders import are_image_folders, read_image_folders
from .json_list import is_json_list, read_json_list
from .nnunet import is_nnunet, read_nnunet

MAX_LISTED_NAMES = 6
MAX_SEARCHED = 50  # folders


@dataclass(frozen=True)
class Layout:
    """A way in which a data set's files lie.

    Args:
        files: what it is recognised by, for messages.
        matches: whether a folder or file is such a data set; it looks at names and small files only.
        read: lists the cases of one that matches.
    """

    files: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], LabelledDataset]


# the first that matches is taken
LAYOUTS: dict[str, Layout] = {
    "nnunet": Layout("dataset.json, imagesTr/NAME_0000.nii.gz, labelsTr/NAME.nii.gz", is_nnunet, read_nnunet),
    "json": Layout(
        'a JSON file with "training": [{"image": path or paths, "label": path}], as of Decathlon or MONAI',
        is_json_list,
        read_json_list,
    ),
    "bids": Layout("sub-*/ and derivatives/NAME/sub-*/**/*_dseg.nii.gz", is_bids, read_bids),
    "csv": Layout("a CSV file with columns image (or image_*) and label", is_case_table, read_case_table),
    "folders": Layout("two folders, images and labels, of like file names", are_image_folders, read_image_folders),
    "case_folders": Layout(
        "CASE/CASE_t1.nii.gz, ..., CASE/CASE_seg.nii.gz, as of BraTS", are_case_folders, read_case_folders
    ),
}


def read_dataset(path: str | Path, layout: str | None = None, channels: Sequence[str] = ()) -> LabelledDataset:
    """List the cases of a labelled data set; images are not opened, but for the values of labels without names.

    Args:
        path: the folder, or the JSON or CSV file that lists the cases.
        layout: a row of ``LAYOUTS``; None takes the first that matches.
        channels: names of the channels to take, in this order; all that are there without.

    Raises:
        DatasetError: nothing is there, no layout matches, or the one that does is not filled in correctly.
        UsageError: an unknown layout, or a channel that the data do not have as files of its own.

    Example:
        >>> dataset = read_dataset("Task04_Hippocampus")  # doctest: +SKIP
        >>> dataset.layout, len(dataset.section("training")), dataset.class_names  # doctest: +SKIP
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"layout={layout!r}; one of {', '.join(LAYOUTS)} is expected.")
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder. Give the data set's folder, or the file that lists it.")
    candidates = LAYOUTS if layout is None else {layout: LAYOUTS[layout]}
    for row in candidates.values():
        if row.matches(path):
            return row.read(path).with_channels(channels)
    expected = "; ".join(f"{name} ({row.files})" for name, row in candidates.items())
    found = _inside(path, candidates)
    advice = f"Give one of the data sets in it: {', '.join(found)}." if found else "Arrange the files as one."
    raise DatasetError(f"{path}: {_seen(path)}; none of the expected layouts: {expected}. {advice}")


def _inside(path: Path, layouts: Mapping[str, Layout]) -> list[str]:
    """Return the folders in a folder that a layout matches, as nnU-Net's folder of all data sets has them."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    found = []
    for one in folders[:MAX_SEARCHED]:
        with suppress(DatasetError):  # of a file that would have to be read to know
            found += [str(one)] if any(row.matches(one) for row in layouts.values()) else []
    return found


def _seen(path: Path) -> str:
    """Describe what is in a folder, or what a file is."""
    if not path.is_dir():
        return "a file" if path.is_file() else "a pipe, socket or device"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(path))
    if not names:
        return "an empty folder"
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return f"a folder with {', '.join(names[:MAX_LISTED_NAMES])}{more}"
