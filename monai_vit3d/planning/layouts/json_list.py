"""Cases listed in a JSON file, as the Medical Segmentation Decathlon and MONAI (Auto3DSeg, bundles) have them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import DatasetError
from monai_vit3d.data.json_files import read_json_file
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

from .common import (
    build_dataset,
    channel_names_seen,
    class_names_from,
    class_names_seen,
    is_nifti_name,
    names_by_file,
    numbered_names,
)
from .targets import cases_task

_SECTIONS = {"training": "training", "validation": "training", "test": "testing", "testing": "testing"}
_ITEM = '{"image": path or paths, "label": path}'
_EXPECTED = f'an object with a list "training" of {_ITEM}'


def is_json_list(path: Path) -> bool:
    """Return whether a file is a JSON file with a list of cases, or a folder has one that is."""
    return _list_file(path) is not None


def read_json_list(path: Path) -> LabelledDataset:
    """List the cases of all sections; those of ``validation``, if there is one, are fold 0 and all others fold 1.

    ``modality`` or ``channel_names`` name the channels and ``labels`` the classes, as in Decathlon's dataset.json;
    what is missing is taken from the files.

    Raises:
        DatasetError: an item is not of the expected form.
    """
    file = _list_file(path)
    if file is None:
        raise DatasetError(f'{path}: no JSON file with a list "training" of {_ITEM}. Write one.')
    content, root = read_json_file(file, DatasetError, _EXPECTED), file.parent
    items = [
        (_item(item, f"{file}, {name}[{i}]"), name)
        for name in _SECTIONS
        for i, item in enumerate(_section(content, name, file))
    ]
    images = [_images(root, item, f"{file}, {name}") for item, name in items]
    names = names_by_file([files[0] for files in images], root)
    folds = {"validation": 0, "training": 1} if content.get("validation") else {}
    cases = [
        _case(file, item, section, name, files, folds.get(section))
        for (item, section), name, files in zip(items, names, images)
    ]
    task, cases, classes = cases_task(cases, str(file))
    if task == "segmentation":
        named = content.get("labels")
        seen = (case.label for case in cases if isinstance(case.label, Path))
        classes = class_names_from(named, f"{file}, labels") if named else class_names_seen(seen)
    channels = numbered_names(content.get("channel_names", content.get("modality")), f"{file}, modality")
    return build_dataset(root, "json", task, cases, _channels(channels, images), classes)


def _case(
    file: Path, item: Mapping[str, Any], section: str, name: str, images: tuple[Path, ...], fold: int | None
) -> LabelledCase:
    """Make a case of an item; what the item itself has comes before ``name`` and ``fold``."""
    fold = item.get("fold", fold)
    if not isinstance(fold, int | None):
        raise DatasetError(f"{file}, {section}: fold {fold!r} of {name}; a whole number from 0 is expected.")
    name, label = str(item.get("name") or name), item.get("label")
    if isinstance(label, str) and is_nifti_name(os.path.basename(label)):
        label = Path(os.path.normpath(file.parent / label))
    return LabelledCase(name, images, label, str(item.get("subject") or name), fold, _SECTIONS[section])


def _list_file(path: Path) -> Path | None:
    """Find the JSON file that lists cases: the path itself, dataset.json, or the only one of a folder."""
    if path.is_file():
        return path if path.suffix.lower() == ".json" and _lists_cases(path) else None
    if _lists_cases(path / "dataset.json"):
        return path / "dataset.json"
    files = [file for file in sorted(path.glob("*.json")) if _lists_cases(file)]
    if len(files) > 1:
        raise DatasetError(f"{path}: {files[0].name} and {files[1].name} list cases; one is expected. Give the file.")
    return files[0] if files else None


def _lists_cases(file: Path) -> bool:
    if not file.is_file():
        return False
    content = read_json_file(file, DatasetError, _EXPECTED)
    return isinstance(content, dict) and isinstance(content.get("training"), list) and bool(content["training"])


def _section(content: Mapping[str, Any], name: str, file: Path) -> list[Any]:
    items = content.get(name) or []
    if not isinstance(items, list):
        raise DatasetError(f"{file}, {name}: {type(items).__name__}; a list of {_ITEM} is expected.")
    return items


def _item(item: Any, where: str) -> Mapping[str, Any]:
    if isinstance(item, str):  # Decathlon's test images
        return {"image": item}
    if not isinstance(item, Mapping) or "image" not in item:
        raise DatasetError(f"{where} is {item!r}; {_ITEM} is expected.")
    return item


def _images(root: Path, item: Mapping[str, Any], where: str) -> tuple[Path, ...]:
    held = item["image"] if isinstance(item["image"], list) else [item["image"]]
    if not held or not all(isinstance(path, str) and path for path in held):
        raise DatasetError(f"{where}: image {item['image']!r}; a path, or a list of one for each channel, is expected.")
    return tuple(Path(os.path.normpath(root / path)) for path in held)


def _channels(named: tuple[str, ...], images: list[tuple[Path, ...]]) -> tuple[str, ...]:
    """Take the given names if there is one for each file of the first case, or it is one file; else by the files."""
    return named if named and len(images[0]) in (1, len(named)) else channel_names_seen(images)
