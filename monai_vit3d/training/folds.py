"""Choose the folds of a bundle that a training is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_vit3d.data.errors import UsageError


def chosen_folds(
    there: Sequence[int], fold: int | Sequence[int] | str, shard: tuple[int, int] | None = None
) -> list[int]:
    """List the folds to train, in their order.

    Args:
        there: the folds that the bundle's split has.
        fold: a number, several, or ``"all"``.
        shard: ``(2, 5)`` takes the second of five parts of them, as for a job array; None takes all.

    Raises:
        UsageError: a fold that the split does not have.
    """
    folds = [*there] if fold == "all" else [fold] if isinstance(fold, int | str) else [*fold]
    for one in folds:
        if one not in there:
            raise UsageError(f"fold={one}: the bundle's split has the folds {_listed(there)}. Choose one, or all.")
    number, parts = shard or (1, 1)
    return [int(one) for one in folds[number - 1 :: parts]]


def model_file(bundle: Path, fold: int) -> Path:
    """Return the file of a fold's weights, which is there when its training is finished."""
    return bundle / "models" / f"fold_{fold}.pt"


def last_finished(bundle: Path, folds: Sequence[int]) -> int | None:
    """Return the fold whose weights were written last; None while one of the folds has none.

    Args:
        bundle: its folder.
        folds: all folds of a job array.
    """
    files = {fold: model_file(bundle, fold) for fold in folds}
    if not all(file.is_file() for file in files.values()):
        return None
    return max(folds, key=lambda fold: (files[fold].stat().st_mtime_ns, fold))


def _listed(folds: Sequence[int]) -> str:
    return ", ".join(map(str, folds)) or "none"
