"""A CSV file with a line for each case: its images, and a label map, a class or a value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai_vit3d.data.csv_files import read_csv_rows
from monai_vit3d.data.errors import DatasetError
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

from .common import (
    build_dataset,
    channel_names_seen,
    class_names_beside,
    class_names_seen,
    is_nifti_name,
    modality_name,
    names_by_file,
)
from .targets import cases_task

_IMAGE, _NAMES, _LABELS = "image", ("name", "case"), ("label", "target", "class")
_SECTIONS = {"": "training", "training": "training", "train": "training", "testing": "testing", "test": "testing"}


def is_case_table(path: Path) -> bool:
    """Return whether a file is a CSV file, or a folder has one with a column of images."""
    return _table_file(path) is not None


def read_case_table(path: Path) -> LabelledDataset:
    """List the cases of a CSV file with the columns ``image`` or ``image_CHANNEL``, and ``label``.

    A label is the path of a label map, a class's name or number, or a fraction to regress. ``class`` instead of
    ``label`` holds classes, ``target`` values. Columns that may be there: ``name, subject, fold, section`` (training or
    testing). Paths start from the CSV file's folder. A ``dseg.tsv`` beside it names the classes of label maps.

    Raises:
        DatasetError: columns are missing, or a line cannot be used; the message names it.
    """
    file = _table_file(path)
    if file is None:
        raise DatasetError(f"{path}: no CSV file with columns image and label. Write one.")
    rows = read_csv_rows(file)
    columns = list(rows[0][1])
    images = [column for column in columns if column == _IMAGE or column.startswith(f"{_IMAGE}_")]
    label = next((column for column in _LABELS if column in columns), None)
    if not images or label is None:
        raise DatasetError(
            f"{file}: columns {', '.join(columns)}; image (or image_*) and label are expected, with commas between."
        )
    root = file.parent
    files = [tuple(_path(root, row[c], f"{file}, line {line}, column {c}") for c in images) for line, row in rows]
    names = [_cell(row, _NAMES) or name for (_, row), name in zip(rows, _default_names(rows, files, root))]
    cases = [_case(file, line, row, label, name, paths) for (line, row), name, paths in zip(rows, names, files)]
    task, cases, classes = cases_task(cases, f"{file}, column {label}", regression=label == "target")
    if task == "segmentation":
        labels = [case.label for case in cases if isinstance(case.label, Path)]
        classes = class_names_beside(root) or class_names_seen(labels)
    named = [modality_name(column.removeprefix(f"{_IMAGE}_")) for column in images]
    channels = named if _IMAGE not in images else channel_names_seen(files)
    return build_dataset(root, "csv", task, cases, channels, classes)


def _table_file(path: Path) -> Path | None:
    """Find the CSV file: the path itself, or the only one of a folder that has a column of images."""
    if path.is_file():
        return path if path.suffix.lower() == ".csv" else None
    files = [file for file in sorted(path.glob("*.csv")) if _has_images(file)]
    if len(files) > 1:
        raise DatasetError(f"{path}: {files[0].name} and {files[1].name} list images; one is expected. Give the file.")
    return files[0] if files else None


def _has_images(file: Path) -> bool:
    with file.open("rb") as stream:
        first = stream.readline(10_000).decode("utf-8-sig", "replace")
    return any(cell.strip(' "\r\n').split("_")[0] == _IMAGE for cell in first.split(","))


def _case(file: Path, line: int, row: dict[str, str], label: str, name: str, paths: tuple[Path, ...]) -> LabelledCase:
    section = row.get("section", "").lower()
    if section not in _SECTIONS:
        raise DatasetError(f"{file}, line {line}: section {section!r}; training or testing is expected.")
    fold = row.get("fold", "")
    if not (fold.isascii() and fold.isdigit()) and fold:
        raise DatasetError(f"{file}, line {line}: fold {fold!r}; a whole number from 0 is expected.")
    held: Any = row[label] or None
    if held and is_nifti_name(os.path.basename(held)):
        held = Path(os.path.normpath(file.parent / held))
    return LabelledCase(name, paths, held, row.get("subject") or name, int(fold) if fold else None, _SECTIONS[section])


def _path(root: Path, cell: str, where: str) -> Path:
    if not cell:
        raise DatasetError(f"{where} is empty; the path of an image is expected. Fill it, or leave the line out.")
    return Path(os.path.normpath(root / cell))


def _cell(row: dict[str, str], columns: tuple[str, ...]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _default_names(rows: list[tuple[int, dict[str, str]]], files: list[tuple[Path, ...]], root: Path) -> list[str]:
    """Name cases after their subjects if each has one of its own, else after their first images."""
    subjects = [row.get("subject", "") for _, row in rows]
    return subjects if all(subjects) and len(set(subjects)) == len(rows) else names_by_file([f[0] for f in files], root)
