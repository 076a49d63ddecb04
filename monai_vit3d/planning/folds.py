"""Share training cases out to folds, by subject."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from .dataset import LabelledCase


def own_folds(cases: Sequence[LabelledCase]) -> int:
    """Count the folds that the data have of their own; 0 if a case has none, or all have the same."""
    folds = {case.fold for case in cases}
    return 0 if None in folds or len(folds) < 2 else len(folds)


def assign_folds(cases: Sequence[LabelledCase], count: int) -> list[int]:
    """Give each case its fold, from 0; all cases of a subject get the same.

    The data's own folds are kept, numbered from 0 in their order. Else subjects go, in an order that depends on their
    names alone and looks random, to the fold with the fewest cases of their class, or else with the fewest cases: the
    same cases give the same folds on any machine, whatever layout they lie in.

    Args:
        cases: of the training section.
        count: number of folds.
    """
    if own_folds(cases):
        order = sorted({case.fold for case in cases})  # type: ignore[type-var]  # none is None
        return [order.index(case.fold) for case in cases]
    sizes = Counter(case.subject for case in cases)
    classes = {case.subject: case.label if isinstance(case.label, int) else None for case in cases}
    subjects = sorted(sizes, key=lambda name: (-sizes[name], hashlib.sha256(name.encode()).digest()))
    filled: list[Counter[int | None]] = [Counter() for _ in range(count)]
    fold_of: dict[str, int] = {}
    for subject in subjects:
        label = classes[subject]
        fold_of[subject] = min(range(count), key=lambda fold: (filled[fold][label], filled[fold].total()))
        filled[fold_of[subject]][label] += sizes[subject]
    return [fold_of[case.subject] for case in cases]
