"""Read a bundle's ``split.json``: which cases train, which validate each fold, which are kept for the test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DatasetError
from .json_shape import shape_violation

SECTIONS = ("training", "validation", "testing")
_CASE = {"name": str, "subject": str, "fold": (int, type(None)), "image": [str], "label": (str, int, float, type(None))}
_SPLIT = {"data_root": str, "training": [_CASE], "testing": [_CASE]}


def datalist(
    split_file: str | Path, section: str, fold: int = 0, dataset_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """List the files of one section of a split, in the split's order.

    Args:
        split_file: a bundle's ``configs/split.json``. Its training cases have a ``fold`` each.
        section: ``"training"``, the training cases of all other folds; ``"validation"``, those of this fold;
            ``"testing"``, the cases that no fold has.
        fold: from 0. Without meaning for ``"testing"``.
        dataset_dir: the folder that relative paths start from; None is the ``data_root`` of the split file.

    Returns:
        ``[{"image": [absolute path, ...], "label": absolute path, number or None, "name": case name}, ...]``, an image
        path for each channel, or one for all of them.

    Raises:
        DatasetError: the split file is missing or of another form, the section or fold is empty, or files are missing.
    """
    split = _read_split(Path(split_file))
    if section not in SECTIONS:
        raise DatasetError(f"{split_file}: section {section!r}; expected one of {', '.join(SECTIONS)}.")
    root = Path(split["data_root"] if dataset_dir is None else dataset_dir)
    cases = split["testing"] if section == "testing" else split["training"]
    folds = sorted({case["fold"] for case in split["training"]})
    if section != "testing":
        if fold not in folds:
            raise DatasetError(f"{split_file}: fold={fold!r}; the training cases have folds {folds}. Choose one.")
        cases = [case for case in cases if (case["fold"] == fold) == (section == "validation")]
    if not cases:
        only = f" All training cases are in fold {fold}: give two folds or more." if section == "training" else ""
        raise DatasetError(f"{split_file}: no cases for {section!r}.{only}")
    items = [_item(case, root) for case in cases]
    _require_files(items, root, section)
    return items


def _read_split(split_file: Path) -> dict[str, Any]:
    try:
        split = json.loads(split_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{split_file}: cannot be read ({error.strerror}). Name a bundle's split.json.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{split_file}: not JSON ({error}). A split.json of `vit3d init` is needed.") from error
    fault = shape_violation(split, _SPLIT) or _missing_key(split)
    if fault:
        raise DatasetError(f"{split_file}: {fault}. A split.json of `vit3d init` is needed.")
    return split


def _missing_key(split: Mapping[str, Any]) -> str:
    cases = [case for name in ("training", "testing") for case in split.get(name, [])]
    pairs = [(key, split) for key in _SPLIT] + [(key, case) for case in cases for key in _CASE]
    return next((f"{holder.get('name', 'it')} has no {key!r}" for key, holder in pairs if key not in holder), "")


def _item(case: Mapping[str, Any], root: Path) -> dict[str, Any]:
    label = case["label"]
    label = str(root / label) if isinstance(label, str) else label
    return {"image": [str(root / path) for path in case["image"]], "label": label, "name": case["name"]}


def _require_files(items: list[dict[str, Any]], root: Path, section: str) -> None:
    paths = [path for item in items for path in [*item["image"], item["label"]] if isinstance(path, str)]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DatasetError(
            f"{missing[0]}: no such file, and {len(missing)} of {len(paths)} files of {section!r} are missing below "
            f"{root}. Give dataset_dir, the folder that the data lie in now."
        )
