"""Infer a list's task from its labels: segmentation, classification or regression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import DatasetError
from monai_vit3d.planning.dataset import LabelledCase


def cases_task(
    cases: Sequence[LabelledCase], where: str, regression: bool = False
) -> tuple[str, list[LabelledCase], dict[int, str]]:
    """Infer the task from the labels: paths are label maps, fractions are values to regress, all else are classes.

    Args:
        cases: with labels as the list has them: a path, a number or a text.
        where: the file, for messages.
        regression: whether whole numbers are values, too.

    Returns:
        the task; the cases, their labels being paths, class numbers or values; and the names of classification's
        classes by number, in the order of the names.

    Raises:
        DatasetError: labels of several kinds.
    """
    labels = {case.name: case.label for case in cases if case.label is not None}
    paths = [name for name, label in labels.items() if isinstance(label, Path)]
    if paths or not labels:
        if len(paths) < len(labels):
            other = next(name for name in labels if name not in paths)
            raise DatasetError(
                f"{where}: label {labels[other]!r} of {other}, but {paths[0]} has a label map; one kind is expected."
            )
        return "segmentation", list(cases), {}
    numbers = {name: _number(label) for name, label in labels.items()}
    is_number = {name for name, value in numbers.items() if value is not None}
    if len(is_number) == len(numbers) and (regression or any(value % 1 for value in numbers.values() if value)):
        return "regression", [replace(case, label=numbers.get(case.name)) for case in cases], {}
    if regression:
        other = next(name for name in numbers if name not in is_number)
        raise DatasetError(f"{where}: target {labels[other]!r} of {other}; a finite number is expected.")
    return _classes(cases, labels, len(is_number) == len(numbers))


def _classes(
    cases: Sequence[LabelledCase], labels: dict[str, Any], are_numbers: bool
) -> tuple[str, list[LabelledCase], dict[int, str]]:
    """Number the classes from 0, in the order of their names or values."""
    texts = {name: f"{float(label):g}" if are_numbers else str(label) for name, label in labels.items()}
    ordered = sorted(set(texts.values()), key=float if are_numbers else str)
    index = {text: number for number, text in enumerate(ordered)}
    numbered = [replace(case, label=index[texts[case.name]] if case.name in texts else None) for case in cases]
    return "classification", numbered, {i: f"class {text}" if are_numbers else text for text, i in index.items()}


def _number(label: Any) -> float | None:
    """Read a finite number; None of anything else."""
    is_text = isinstance(label, str) and re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,2})?", label.strip(), re.I)
    return float(label) if is_text or (isinstance(label, int | float) and abs(label) < 1e300) else None
