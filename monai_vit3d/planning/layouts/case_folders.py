"""A folder for each case that holds its images and its label map, as BraTS has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from monai_vit3d.data.errors import DatasetError
from monai_vit3d.data.label_names import is_label_name
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

from .common import (
    build_dataset,
    channel_names_seen,
    class_names_beside,
    class_names_seen,
    modality_name,
    most_have,
    nifti_in,
)

# BraTS until 2021 and since 2023
_CONTRASTS = {
    "t1": "T1w", "t1n": "T1w", "t1ce": "T1ce", "t1c": "T1ce", "t2": "T2w", "t2w": "T2w", "flair": "FLAIR",
    "t2f": "FLAIR",
}  # fmt: skip
_TIMEPOINT = re.compile(r"(BraTS-\w+-\d+)-\d{3}")  # a subject's second scan is 00001-001


def are_case_folders(path: Path) -> bool:
    """Return whether a folder has folders that each hold images and a label map, directly or in groups (HGG, LGG)."""
    return path.is_dir() and any(label and images for _, images, label in _cases(path))


def read_case_folders(path: Path) -> LabelledDataset:
    """List a case for each folder CASE with CASE_CHANNEL.nii.gz (or CASE-CHANNEL, CHANNEL, or CASE of one image).

    The label map is the file whose name ends with seg, label or the like; folders without one are test cases. Channels
    that half of the labelled cases have, or more, are read. Scans of one subject by BraTS' names since 2023 stay in one
    fold. A ``dseg.tsv`` beside the folders names the classes.

    Raises:
        DatasetError: a folder has several label maps, or no image's name is that of others.
    """
    found = list(_cases(path))
    channels = most_have({folder: images for folder, images, label in found if label}, "cases")
    if not channels:
        raise DatasetError(f"{path}: the cases' images have no common names; CASE_CHANNEL is expected. Rename them.")
    names = _channel_names(channels)
    channels = sorted(channels, key=lambda channel: names[channel])
    cases = []
    for folder, images, label in found:
        if label is None and not set(channels) <= images.keys():
            continue  # neither labelled nor complete
        files = tuple(images.get(channel, folder / f"{folder.name}_{channel}.nii.gz") for channel in channels)
        match = _TIMEPOINT.fullmatch(folder.name)
        subject = match[1] if match else folder.name
        cases.append(LabelledCase(folder.name, files, label, subject, section="training" if label else "testing"))
    classes = class_names_beside(path) or class_names_seen(label for *_, label in found if label)
    seen = channel_names_seen([case.images for case in cases]) if channels == [""] else [names[c] for c in channels]
    return build_dataset(path, "case_folders", "segmentation", cases, seen, classes)


def _cases(path: Path) -> Iterator[tuple[Path, dict[str, Path], Path | None]]:
    """Yield each folder with images, its images by channel and its label map."""
    for folder in sorted([*path.glob("*/"), *path.glob("*/*/")]):
        files = nifti_in(folder)
        labels = [file for name, file in files.items() if is_label_name(name)]
        if len(labels) > 1:
            raise DatasetError(
                f"{labels[1]}: {labels[0].name} is of the same case; one label map is expected. Move one."
            )
        prefix = re.compile(rf"\A{re.escape(folder.name)}([-_.]|\Z)")
        images = {prefix.sub("", name): file for name, file in files.items() if file not in labels}
        if images:
            yield folder, images, labels[0] if labels else None


def _channel_names(channels: list[str]) -> dict[str, str]:
    """Name channels by their contrasts, or as they are where two would have one name."""
    names = {channel: _CONTRASTS.get(channel.lower(), modality_name(channel)) for channel in channels}
    return names if len({*names.values()}) == len(names) else {channel: channel for channel in channels}
