"""Read the paths and labels of your own volumes from a CSV file, and prepare labels for a training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .csv_files import read_csv_lines
from .errors import DatasetError
from .task_names import resolve_task

if TYPE_CHECKING:
    from torch import Tensor

Rows = list[tuple[int, dict[str, str]]]


def labelled_volumes(
    csv_file: str | Path,
    task: str = "multi-class",
    class_names: Sequence[str] | None = None,
    image_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """List NIfTI files and their labels from a CSV file with the columns ``path`` and ``label``, in its order.

    Args:
        csv_file: UTF-8, with commas. Blank lines and other columns are ignored.
        task: what the labels are. ``"multi-class"`` and ``"ordinal"``: a class name, or else a class number.
            ``"multi-label"``: instead of ``label``, a column of 0 and 1 for each class name. ``"regression"``: a value.
        class_names: in the order of their numbers; a multi-label task needs them.
        image_dir: the folder that relative paths start from; None is the CSV file's own.

    Returns:
        ``[{"image": absolute path, "label": ..., "name": path as the CSV has it}, ...]`` with an ``int`` label for
        classes, ordered or not, and a float32 vector ``(L,)`` else; L = 1 for regression.

    Raises:
        DatasetError: the CSV or a listed file is not there, or a row cannot be used; the message names its line.
        ValueError: an unknown task, a multi-label task without class names, or a class name that comes twice.
    """
    task, names, table = resolve_task(task), list(class_names or []), Path(csv_file)
    if len(set(names)) < len(names) or (task == "multi-label" and not names):
        raise ValueError(f"class_names={class_names!r}: expected names that differ, one or more for 'multi-label'.")
    columns = names if task == "multi-label" else ["label"]
    rows = _rows(table, ["path", *columns])
    paths = _image_paths(rows, table, table.parent if image_dir is None else Path(image_dir))
    labels = [_label([row[c] for c in columns], task, names, _where(table, line)) for line, row in rows]
    return [{"image": p, "label": label, "name": row["path"]} for p, label, (_, row) in zip(paths, labels, rows)]


def class_balanced_weights(labels: Sequence[Any]) -> Tensor:
    """Compute sampling weights under which each class is drawn equally often: 1 / size of the sample's class.

    For torch's ``WeightedRandomSampler`` or MONAI's ``DistributedWeightedRandomSampler``.

    Args:
        labels: N class numbers, or N label vectors; each distinct vector is a class then.

    Returns:
        ``(N,)`` float64 of mean 1.

    Raises:
        ValueError: no label.
    """
    import torch

    if not len(labels):
        raise ValueError("no label came; expected one or more.")
    classes = [tuple(np.ravel(label).tolist()) for label in labels]
    sizes = Counter(classes)
    share = len(classes) / len(sizes)
    return torch.tensor([share / sizes[key] for key in classes], dtype=torch.float64)


def steps_in(loader: Any) -> int:
    """Count the batches of an epoch of a training's data loader.

    Args:
        loader: torch's or MONAI's ``DataLoader``.

    Raises:
        DatasetError: there are none, as this process has fewer cases than a batch, and a smaller batch is dropped.
    """
    if len(loader):
        return len(loader)
    cases, share = len(loader.dataset), len(loader.sampler)
    of_process = "" if share == cases else f", {share} of them for this process,"
    smaller = f", or set batch_size to {share}" if share else ""
    raise DatasetError(
        f"{cases} training cases{of_process} make no batch of {loader.batch_size}. Give more cases{smaller}."
    )


def check_classes(labels: Sequence[Any], num_classes: int, section: str, names: Sequence[str] | None = None) -> None:
    """Make sure that the AUC of every class is defined: the section has samples of the class and of others.

    Args:
        labels: N class numbers, or N vectors ``(num_classes,)`` of 0 and 1; each label needs both values then.
        num_classes: number of classes or labels.
        section: its name, for the message.
        names: class names in the order of their numbers.

    Raises:
        DatasetError: a class is missing, there is only one, or a label is not one of the classes.
    """
    class_names = list(names) if names else [f"class {i}" for i in range(num_classes)]
    array = np.array([np.asarray(label) for label in labels])
    by_class = array.ndim == 1
    fault = _label_violation(array, num_classes if by_class else 2)
    if len(class_names) != num_classes or array.shape[1:] not in ((), (num_classes,)):
        fault = f"{len(class_names)} names and labels {array.shape} for {num_classes} classes"
    if fault:
        raise DatasetError(f"section {section!r}: {fault}.")
    missing = _missing_classes(array, class_names) if by_class else _missing_values(array, class_names)
    if missing:
        raise DatasetError(
            f"section {section!r} with {len(array)} samples has {missing}. AUC needs at least one sample of each class "
            "and one of another: split anew, or leave the class out."
        )


def _label_violation(labels: np.ndarray, count: int) -> str:
    outside = labels[~np.isin(labels, np.arange(count))]
    return f"label {outside[0]}; expected 0 to {count - 1}" if outside.size else ""


def _missing_classes(numbers: np.ndarray, names: list[str]) -> str:
    present = set(numbers.tolist())
    absent = [name for i, name in enumerate(names) if i not in present]
    if absent:
        return f"no sample of {', '.join(absent)} ({len(absent)} of {len(names)} classes)"
    return f"only one class, {names[0]}" if len(names) == 1 else ""


def _missing_values(vectors: np.ndarray, names: list[str]) -> str:
    absent = [f"{name} = {v}" for name, column in zip(names, vectors.T) for v in (0, 1) if v not in column]
    return f"no sample of {', '.join(absent)}" if absent else ""


def _where(table: Path, line: int) -> str:
    return f"{table}, line {line}"


def _rows(table: Path, needed: list[str]) -> Rows:
    """Read line numbers and the cells of the required columns, none of them empty."""
    lines = read_csv_lines(table)
    if len(lines) < 2:
        raise DatasetError(f"{table}: no rows; expected a line with {','.join(needed)} and one for each volume.")
    (first, header), *body = lines
    wrong = [column for column in needed if header.count(column) != 1]
    if wrong:
        raise DatasetError(
            f"{_where(table, first)}: {header.count(wrong[0]) or 'no'} columns {wrong[0]!r} among {header}; expected "
            f"one of each of {', '.join(needed)}, with commas between."
        )
    for line, cells in body:
        if any(cells[len(header) :]):
            raise DatasetError(
                f"{_where(table, line)}: {len(cells)} cells; the header has {len(header)}. Quote a cell with commas."
            )
        empty = [c for c in needed if not "".join(cells[header.index(c) : header.index(c) + 1])]
        if empty:
            raise DatasetError(f"{_where(table, line)}: column {empty[0]!r} is empty. Fill it or leave the row out.")
    return [(line, {c: cells[header.index(c)] for c in needed}) for line, cells in body]


def _image_paths(rows: Rows, table: Path, folder: Path) -> list[str]:
    """Make the paths of the files absolute, and check that each exists and is listed once."""
    lines: dict[str, int] = {}
    paths = [os.path.abspath(folder / row["path"]) for _, row in rows]
    for (line, row), path in zip(rows, paths):
        if not path.endswith((".nii", ".nii.gz")):
            raise DatasetError(f"{_where(table, line)}: {row['path']} is no NIfTI file; expected .nii or .nii.gz.")
        first = lines.setdefault(os.path.realpath(path), line)
        if first != line:
            raise DatasetError(f"{_where(table, line)}: {row['path']} is the file of line {first}. List a file once.")
    absent = [(line, path) for (line, _), path in zip(rows, paths) if not os.path.isfile(path)]
    if absent:
        raise DatasetError(
            f"{_where(table, absent[0][0])}: {len(absent)} of {len(paths)} listed files are missing, the first is "
            f"{absent[0][1]}. Relative paths start from {folder}; give image_dir for another folder."
        )
    return paths


def _label(cells: list[str], task: str, names: list[str], where: str) -> int | np.ndarray:
    if task in ("multi-class", "ordinal"):
        return _class_number(cells[0], names, where)
    if task == "regression":
        return np.array([_finite(cells[0], where)], np.float32)
    wrong = [f"{name} is {cell!r}" for name, cell in zip(names, cells) if cell not in ("0", "1")]
    if wrong:
        raise DatasetError(f"{where}: {wrong[0]}; expected 0 or 1.")
    return np.array(cells, np.float32)


def _class_number(cell: str, names: list[str], where: str) -> int:
    if cell in names:
        return names.index(cell)
    number = int(cell) if cell.isascii() and cell.isdigit() else -1
    if number < 0 or (names and number >= len(names)):
        choices = f"one of {', '.join(names)}, or its number from 0 to {len(names) - 1}," if names else "a class number"
        raise DatasetError(f"{where}: label {cell!r}; expected {choices}.")
    return number


def _finite(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise DatasetError(f"{where}: label {cell!r}; expected a finite number.")
    return value
