"""Read Medical Segmentation Decathlon tasks (Antonelli et al. 2022, Nature Communications 13:4128) by a fixed split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DatasetError
from .json_files import read_json_file

IMAGE_SUFFIXES = (".nii.gz", ".nii")


def decathlon_split(dataset_dir: str | Path, split_file: str | Path, section: str) -> list[dict[str, Any]]:
    """List image and label files of one section of a split, in the split's order.

    A section of the split file lists cases by their names, ``"hippocampus_001"``, for files of that name in
    ``imagesTr`` and ``labelsTr``; or, as a task's own ``dataset.json`` does, by ``{"image": path, "label": path}`` with
    paths below ``dataset_dir`` and any names. An image may be a list of files then, one for each channel.

    Args:
        dataset_dir: a task's folder, as MONAI's ``DecathlonDataset`` unpacks it.
        split_file: JSON with a list of cases for each section.
        section: ``"training"``, ``"validation"`` or ``"test"``, as the split file names them.

    Returns:
        ``[{"image": path, "label": path, "name": path of the image}, ...]``.

    Raises:
        DatasetError: the folder, the section or some cases are missing (the message says how to fetch them); or the
            split file is not JSON of this form, or lists a case without labels or twice.
    """
    root = Path(dataset_dir)
    fetch = (
        "Fetch it with monai.apps.DecathlonDataset(root_dir=..., task=..., section='training', download=True) and set "
        "MONAI_DATA_DIRECTORY to the folder that holds it, or override dataset_dir."
    )
    has_images = (root / "imagesTr").is_dir()
    if not has_images and not (root.is_dir() and Path(split_file).is_file()):
        raise DatasetError(f"{root}: no Decathlon task here (no folder imagesTr). {fetch}")
    cases = _cases(Path(split_file), section)
    if not has_images and any(isinstance(case, str) for case in cases):
        raise DatasetError(f"{root}: no Decathlon task here (no folder imagesTr). {fetch}")
    files = [_files(root, case, f"{split_file}: section {section!r}") for case in cases]
    paths = [path for item in files for value in item.values() for path in _listed(value)]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} files of {section!r} are missing, the first is {missing[0]}. {fetch}")
    names = [_listed(item["image"])[0] for item in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DatasetError(f"{split_file}: section {section!r} lists {twice[0]} twice. List a case once.")
    return [{**item, "name": name} for item, name in zip(files, names)]


def decathlon_classes(dataset_json: str | Path) -> int:
    """Count the classes of a task, background included, by the ``labels`` of its ``dataset.json``.

    Args:
        dataset_json: the file; ``"labels"`` is ``{"0": "background", ...}``, or nnU-Net's ``{"background": 0, ...}``.

    Raises:
        DatasetError: no such file, or labels that are not 0, 1, 2, ...
    """
    labels = _read(Path(dataset_json)).get("labels")
    pairs = labels.items() if isinstance(labels, dict) else []
    numbers = {str(value if isinstance(value, int) else key) for key, value in pairs}
    if len(numbers) < 2 or numbers != {str(i) for i in range(len(numbers))}:
        raise DatasetError(f'{dataset_json}: labels {labels!r}; expected {{"0": "background", "1": name, ...}}.')
    return len(numbers)


def _read(path: Path) -> dict[str, Any]:
    held = read_json_file(path, DatasetError, "a list of cases for each section")
    return held if isinstance(held, dict) else {}


def _cases(split_file: Path, section: str) -> list[Any]:
    lists = {name: cases for name, cases in _read(split_file).items() if isinstance(cases, list)}
    if not lists.get(section):
        advice = f"Write a JSON file with {section!r} beside the others, its cases taken out of them."
        sections = ", ".join(f"{name} ({len(cases)} cases)" for name, cases in lists.items()) or "none"
        raise DatasetError(f"{split_file}: no section {section!r} with cases; it has {sections}. {advice}")
    return lists[section]


def _files(root: Path, case: Any, where: str) -> dict[str, Any]:
    if isinstance(case, str) and "/" not in case:
        return {key: _file(root / folder, case) for key, folder in (("image", "imagesTr"), ("label", "labelsTr"))}
    if not isinstance(case, Mapping) or not all(_is_path(case.get(key)) for key in ("image", "label")):
        raise DatasetError(f"{where} lists {case!r}; expected a case's name, or an object with its image and label.")
    return {key: _below(root, case[key]) for key in ("image", "label")}


def _file(folder: Path, case: str) -> str:
    """Find the file of a case, compressed or not; ``case`` may have the suffix."""
    if case.endswith(IMAGE_SUFFIXES):
        return str(folder / Path(case).name)
    return next(
        (str(path) for suffix in IMAGE_SUFFIXES if (path := folder / f"{case}{suffix}").is_file()),
        str(folder / f"{case}.nii.gz"),
    )


def _is_path(value: Any) -> bool:
    return bool(value) and (
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    )


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _below(root: Path, value: Any) -> Any:
    """Resolve ``./imagesTr/x.nii.gz`` below the task's folder."""
    return [str(root / path) for path in value] if isinstance(value, list) else str(root / value)
