"""nnU-Net's raw data sets, version 1 and 2 (Isensee et al. 2021, Nature Methods 18:203; its dataset_format.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import DatasetError
from monai_vit3d.data.json_files import read_json_file
from monai_vit3d.data.json_shape import ANY_KEY, shape_violation
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

from .common import NIFTI, build_dataset, class_names_from, nifti_in, numbered_names

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_SHAPE = {"file_ending": str, "dataset": {ANY_KEY: {"images": [str], "label": str}}}


def is_nnunet(path: Path) -> bool:
    """Return whether a folder, or the dataset.json in it, is nnU-Net's: its images end with the number of a channel."""
    root = path.parent if path.name == "dataset.json" else path
    if not (root / "dataset.json").is_file():
        return False
    images = root / "imagesTr"
    has_channels = images.is_dir() and any(re.search(r"_\d{4}\.\w", entry.name) for entry in images.iterdir())
    return has_channels or "channel_names" in _content(root)


def read_nnunet(path: Path) -> LabelledDataset:
    """List the cases; a channel that a case lacks is listed under the name that its file should have.

    Raises:
        DatasetError: dataset.json is not as nnU-Net has it, or the files are of another format than NIfTI.
    """
    root = path.parent if path.name == "dataset.json" else path
    where, content = root / "dataset.json", _content(root)
    if fault := shape_violation(content, _SHAPE, str(where)):
        raise DatasetError(f"{fault}. Write the file as nnU-Net's dataset_format.md says.")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in NIFTI:
        raise DatasetError(
            f"{where}: file_ending is {ending!r}; .nii.gz or .nii is expected. Convert the images to NIfTI."
        )
    key = "channel_names" if "channel_names" in content else "modality"
    channels = numbered_names(content.get(key), f"{where}, {key}")
    if not channels:
        raise DatasetError(f'{where}: no channel_names; {{"channel_names": {{"0": "CT"}}}} is expected. Add them.')
    classes = class_names_from(content.get("labels"), f"{where}, labels")
    cases = (
        _listed_cases(root, content["dataset"]) if content.get("dataset") else _training(root, len(channels), ending)
    )
    return build_dataset(
        root, "nnunet", "segmentation", cases + _testing(root, len(channels), ending), channels, classes
    )


def _content(root: Path) -> dict[str, Any]:
    content = read_json_file(root / "dataset.json", DatasetError, "nnU-Net's dataset.json")
    if not isinstance(content, dict):
        raise DatasetError(f"{root / 'dataset.json'}: no JSON object; channel_names and labels are expected in one.")
    return content


def _training(root: Path, channels: int, ending: str) -> list[LabelledCase]:
    images, labels = nifti_in(root / "imagesTr"), nifti_in(root / "labelsTr")
    names = _names(images) | set(labels)
    return [
        LabelledCase(
            name,
            _files(root / "imagesTr", images, name, channels, ending),
            labels.get(name, root / "labelsTr" / f"{name}{ending}"),
            name,
        )
        for name in names
    ]


def _testing(root: Path, channels: int, ending: str) -> list[LabelledCase]:
    images, labels = nifti_in(root / "imagesTs"), nifti_in(root / "labelsTs")
    return [
        LabelledCase(
            name,
            _files(root / "imagesTs", images, name, channels, ending),
            labels.get(name),
            name,
            section="testing",
        )
        for name in _names(images)
    ]


def _listed_cases(root: Path, listed: dict[str, Any]) -> list[LabelledCase]:
    """List the cases of version 2, which may name each case's files instead of finding them by pattern."""
    return [
        LabelledCase(name, tuple(root / image for image in item["images"]), root / item["label"], name)
        for name, item in listed.items()
        if {"images", "label"} <= item.keys()
    ]


def _names(images: dict[str, Path]) -> set[str]:
    return {match[1] if (match := _CHANNEL.fullmatch(text)) else text for text in images}


def _files(folder: Path, images: dict[str, Path], name: str, channels: int, ending: str) -> tuple[Path, ...]:
    texts = [f"{name}_{index:04d}" for index in range(channels)]
    return tuple(images.get(text, folder / f"{text}{ending}") for text in texts)
