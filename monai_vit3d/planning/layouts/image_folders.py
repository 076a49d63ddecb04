"""Two folders of like names, one of images and one of label maps."""

from __future__ import annotations

import os
import re
from pathlib import Path

from monai_vit3d.data.errors import DatasetError
from monai_vit3d.data.label_names import is_label_folder
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

from .common import (
    build_dataset,
    channel_names_seen,
    class_names_beside,
    class_names_seen,
    group_by_case,
    modality_name,
    nifti_in,
)

_TEST = re.compile(r"(.*[-_ ]?)?(ts|te|test|testing)", re.IGNORECASE)
# BTCV's img0001 and label0001, LiTS' volume-0 and segmentation-0, case_3_seg
_IMAGE_WORD = re.compile(
    r"\A(img|image|volume|vol|scan)[-_. ]?(?=\d)|[-_. ](img|image|volume|vol|scan)\Z", re.IGNORECASE
)
_LABEL_WORD = re.compile(
    r"\A(labels?|masks?|segs?|segmentations?|gt)[-_. ]?(?=\d)|[-_. ](labels?|masks?|d?segs?|segmentations?|gt)\Z",
    re.IGNORECASE,
)


def are_image_folders(path: Path) -> bool:
    """Return whether a folder has one folder of images and one of labels, by the folders' names."""
    images, labels, _ = _folders(path)
    return len(images) == len(labels) == 1


def read_image_folders(path: Path) -> LabelledDataset:
    """List the cases: an image of the label's name, or several of that name and ``_CHANNEL``.

    A third folder whose name ends with test or Ts holds images to test on. Names of the classes are taken from a
    ``dseg.tsv`` beside the folders.

    Raises:
        DatasetError: not one folder of images and one of labels.
    """
    images, labels, tests = _folders(path)
    if len(images) != 1 or len(labels) != 1:
        came = f"{len(images)} folders of images and {len(labels)} of labels"
        raise DatasetError(f"{path}: {came}; one of each, such as images/ and labels/, is expected.")
    label_files, image_files = _by_name(labels[0], _LABEL_WORD), _by_name(images[0], _IMAGE_WORD)
    groups = group_by_case(image_files, label_files)
    if not groups.keys() & label_files.keys():
        image, label = (next(iter(files.values()), "no file") for files in (image_files, label_files))
        raise DatasetError(
            f"{path}: no label has an image's name ({image}, {label}); like names are expected. Rename them."
        )
    channels = sorted({channel for group in groups.values() for channel in group})
    groups |= {name: {} for name in label_files if name not in groups}
    cases = [
        LabelledCase(
            name,
            _files(images[0], image_files, name, group, channels),
            label_files.get(name, labels[0] / f"{name}.nii.gz"),
            name,
        )
        for name, group in groups.items()
    ]
    for folder in tests:
        files = _by_name(folder, _IMAGE_WORD)
        cases += [
            LabelledCase(name, _files(folder, files, name, group, channels), None, name, section="testing")
            for name, group in group_by_case(files, (), channels).items()
        ]
    classes = class_names_beside(path) or class_names_seen(label_files.values())
    return build_dataset(path, "folders", "segmentation", cases, _channel_names(channels, cases), classes)


def _channel_names(channels: list[str], cases: list[LabelledCase]) -> tuple[str, ...]:
    """Name channels by what follows the cases' names, unless that is a number or nothing."""
    if all(channel and not channel.isdigit() for channel in channels):
        return tuple(map(modality_name, channels))
    return channel_names_seen([case.images for case in cases])


def _files(
    folder: Path, files: dict[str, Path], name: str, group: dict[str, str], channels: list[str]
) -> tuple[Path, ...]:
    """List the file of each channel, those that are missing by the name that they should have."""
    expected = [folder / f"{name}{'_' if channel else ''}{channel}.nii.gz" for channel in channels]
    return tuple(files[group[channel]] if channel in group else path for channel, path in zip(channels, expected))


def _by_name(folder: Path, word: re.Pattern[str]) -> dict[str, Path]:
    """List the files of a folder by their stems, without a word that says that they are images or labels."""
    return {word.sub("", name): file for name, file in nifti_in(folder).items()}


def _folders(path: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """List the folders of images, labels and test images."""
    if not path.is_dir():
        return [], [], []
    folders = [Path(e) for e in sorted(os.scandir(path), key=lambda e: e.name) if e.is_dir() and e.name[0] != "."]
    folders = [folder for folder in folders if nifti_in(folder)]
    labels = [folder for folder in folders if is_label_folder([folder.name])]
    images = [folder for folder in folders if folder not in labels]
    tests = [folder for folder in images if _TEST.fullmatch(folder.name)]
    train = [folder for folder in images if folder not in tests]
    return train, [folder for folder in labels if not _TEST.fullmatch(folder.name)], tests
