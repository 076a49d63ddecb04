"""The trained folds of a bundle: files ``fold_K.pt`` beside each other in its ``models`` folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from monai_vit3d.data.confinement import check_confined
from monai_vit3d.data.errors import WeightsError

_FOLD = re.compile(r"fold_(0|[1-9][0-9]{0,3})\.pt")


def is_fold_file(path: Path) -> bool:
    """Return whether a file is named as the weights of a fold."""
    return _FOLD.fullmatch(path.name) is not None


def fold_files(folder: str | Path, folds: int | Sequence[int] | None = None) -> list[str]:
    """List the weights of the folds whose training is finished, for :func:`network_from`.

    Args:
        folder: a bundle's ``models``.
        folds: which ones, counted from 0; None takes all that are there.

    Returns:
        Paths of ``fold_K.pt``, in the order of the folds.

    Raises:
        WeightsError: there is none, or one of ``folds`` is missing.
    """
    folder = Path(folder)
    check_confined(folder)
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    files = {int(match[1]): folder / name for name in names if (match := _FOLD.fullmatch(name))}
    chosen = sorted(files) if folds is None else _folds(folds)
    trained = f"finished: {', '.join(map(str, sorted(files)))}" if files else "no training is finished"
    missing = [str(fold) for fold in chosen if fold not in files]
    if missing:
        raise WeightsError(
            f"{folder}: no weights of fold {', '.join(missing)} ({trained}). Choose other folds, or train with: vit3d "
            f"train {_shown(folder)} --fold {missing[0]}"
        )
    if not chosen:
        raise WeightsError(f"{folder}: no fold_K.pt, {trained}. Train the bundle first: vit3d train {_shown(folder)}")
    return [str(files[fold]) for fold in chosen]


def _folds(folds: int | Sequence[int]) -> list[int]:
    chosen = [folds] if isinstance(folds, int) else list(folds) if isinstance(folds, list | tuple) else []
    if not chosen or not all(type(fold) is int and fold >= 0 for fold in chosen) or len(set(chosen)) < len(chosen):
        raise WeightsError(f"folds={folds!r}; numbers from 0, each once, are expected, as [0, 2]; null takes all.")
    return sorted(chosen)


def _shown(models: Path) -> str:
    """Return the bundle as a command would name it."""
    return str(models.parent)
