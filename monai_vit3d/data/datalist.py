"""Read a bundle's ``split.json``: which cases train, which validate each fold, which are kept for the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DatasetError
from .json_files import read_json_file
from .json_shape import shape_violation

SECTIONS = ("training", "validation", "testing")
_CASE = {"name": str, "subject": str, "image": [str], "label": (str, int, float)}
_SPLIT = {"data_root": str, "training": [_CASE | {"fold": int}], "testing": [_CASE | {"fold": type(None)}]}


def datalist(
    split_file: str | Path, section: str, fold: int | None = None, dataset_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """List the files of one section of a split, in the split's order.

    Args:
        split_file: a bundle's ``configs/split.json``. Its training cases have a ``fold`` each.
        section: ``"training"``, the training cases of all other folds; ``"validation"``, those of this fold;
            ``"testing"``, the labelled cases that no fold has.
        fold: from 0; None takes all training cases. Without meaning for ``"testing"``.
        dataset_dir: the folder that relative paths start from; None is the ``data_root`` of the split file.

    Returns:
        ``[{"image": [absolute path, ...], "label": absolute path or number, "name": ..., "subject": ...}, ...]``, an
        image path for each channel, or one for all of them; training cases have their ``"fold"``, too.

    Raises:
        DatasetError: the split file is missing or of another form, the section or fold is empty, or files are missing.
    """
    split = _read_split(Path(split_file))
    if section not in SECTIONS:
        raise DatasetError(f"{split_file}: section {section!r}; expected one of {', '.join(SECTIONS)}.")
    cases = split["testing"] if section == "testing" else split["training"]
    if section != "testing" and fold is not None:
        folds = _folds_in(split)
        if fold not in folds:
            raise DatasetError(f"{split_file}: fold={fold!r}; the training cases have folds {folds}. Choose one.")
        cases = [case for case in cases if (case["fold"] == fold) == (section == "validation")]
    if not cases:
        only = f" All cases are in fold {fold}: expected two folds or more." if section == "training" else ""
        raise DatasetError(f"{split_file}: no cases for {section!r}.{only}")
    root = Path(split["data_root"] if dataset_dir is None else dataset_dir)
    items = [_item(case, root) for case in cases]
    _require_files(items, root, section)
    return items


def folds_of(split_file: str | Path) -> list[int]:
    """List the folds that a split's training cases have.

    Args:
        split_file: a bundle's ``configs/split.json``.

    Raises:
        DatasetError: it is missing or of another form.
    """
    return _folds_in(_read_split(Path(split_file)))


def _folds_in(split: Mapping[str, Any]) -> list[int]:
    """List the folds of a split that is read already."""
    return sorted({case["fold"] for case in split["training"]})


def _read_split(split_file: Path) -> dict[str, Any]:
    split = read_json_file(split_file, DatasetError, "a split.json of `vit3d init`")
    fault = shape_violation(split, _SPLIT) or _missing_key(split)
    if fault:
        raise DatasetError(f"{split_file}: {fault}; expected a split.json of `vit3d init`.")
    return split


def _missing_key(split: Mapping[str, Any]) -> str:
    cases = [case for name in ("training", "testing") for case in split.get(name, [])]
    pairs = [(key, split) for key in _SPLIT] + [(key, case) for case in cases for key in (*_CASE, "fold")]
    return next((f"{holder.get('name', 'it')} has no {key!r}" for key, holder in pairs if key not in holder), "")


def _item(case: Mapping[str, Any], root: Path) -> dict[str, Any]:
    label = str(root / case["label"]) if isinstance(case["label"], str) else case["label"]
    item = {"image": [str(root / path) for path in case["image"]], "label": label}
    names = {key: case[key] for key in ("name", "subject", "fold") if case[key] is not None}  # batches have no None
    return item | names


def _require_files(items: list[dict[str, Any]], root: Path, section: str) -> None:
    paths = [path for item in items for path in [*item["image"], item["label"]] if isinstance(path, str)]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DatasetError(
            f"{missing[0]}: no such file, and {len(missing)} of {len(paths)} files of {section!r} are missing below "
            f"{root}. Give dataset_dir, the folder that the data lie in now."
        )
