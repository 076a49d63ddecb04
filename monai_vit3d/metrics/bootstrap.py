"""Bootstrap the mean of scores, and compare two methods case by case."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .checks import FloatArray

RESAMPLES = 10_000
STATISTIC_RESAMPLES = 1_000  # each computes the statistic anew
SEED = 0
_AT_A_TIME = 1_000  # resamples, so that the table of counts stays small


class Interval(NamedTuple):
    """A mean with its 95 % interval; NaN where it is undefined."""

    mean: float
    low: float
    high: float


class PairedComparison(NamedTuple):
    """Differences between two methods on the same cases, the first minus the second.

    Args:
        cases: how many both have scores of.
        difference: mean over the cases, with a bootstrap interval.
        higher: cases in which the first is higher.
        lower: cases in which it is lower.
        p: of Wilcoxon's signed-rank test, two-sided, over subjects; NaN where it is undefined.
    """

    cases: int
    difference: Interval
    higher: int
    lower: int
    p: float


def bootstrap_mean(
    values: Sequence[float] | FloatArray,
    subjects: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Compute a mean over cases and its percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Whole subjects are drawn with all their cases, as cases of one subject are alike. NaN are left out. One subject
    alone has no interval.

    Args:
        values: a score a case.
        subjects: of the cases; None takes each case for a subject of its own.
        resamples: how many are drawn.
        seed: of the random numbers: the same cases give the same interval.
    """
    sums, counts = _by_subject(values, subjects)
    if not len(sums):
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(mean, math.nan, math.nan)
    rng, shares = np.random.default_rng(seed), np.full(len(sums), 1 / len(sums))
    means = []
    for first in range(0, resamples, _AT_A_TIME):
        drawn = rng.multinomial(len(sums), shares, min(_AT_A_TIME, resamples - first))
        means.append(drawn @ sums / (drawn @ counts))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Interval(mean, float(low), float(high))


def bootstrap_statistic(
    statistic: Callable[[Any], FloatArray],
    cases: int,
    subjects: Sequence[Hashable] | None = None,
    resamples: int = STATISTIC_RESAMPLES,
    seed: int = SEED,
) -> list[Interval]:
    """Compute statistics of a set of cases that are no means, as an AUC, and their percentile bootstrap intervals.

    Whole subjects are drawn. A statistic that a resample leaves undefined (NaN) is left out of its interval.

    Args:
        statistic: gives numbers ``(S,)`` for the numbers of cases.
        cases: how many there are.
        subjects: of the cases; None takes each case for a subject of its own.
        resamples: how many are drawn.
        seed: of the random numbers.
    """
    names = list(range(cases)) if subjects is None else list(subjects)
    groups: dict[Hashable, list[int]] = {}
    for case, name in enumerate(names):
        groups.setdefault(name, []).append(case)
    values, own = statistic(np.arange(cases)), list(groups.values())
    if len(own) < 2:
        return [Interval(float(value), math.nan, math.nan) for value in values]
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        chosen = rng.integers(0, len(own), len(own))
        drawn.append(statistic(np.concatenate([own[group] for group in chosen])))
    intervals = []
    for value, column in zip(values, np.array(drawn).T):
        kept = column[~np.isnan(column)]
        low, high = np.percentile(kept, (2.5, 97.5)) if len(kept) and not math.isnan(value) else (math.nan, math.nan)
        intervals.append(Interval(float(value), float(low), float(high)))
    return intervals


def compare_pairs(
    first: Sequence[float], second: Sequence[float], subjects: Sequence[Hashable] | None = None
) -> PairedComparison:
    """Compare two methods' scores of the same cases.

    Args:
        first: a score a case; NaN leaves the case out.
        second: of the same cases.
        subjects: of the cases; the test is taken over the subjects' mean differences, as it needs independent ones.
    """
    from scipy.stats import wilcoxon

    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    sums, counts = _by_subject(differences, subjects)
    means = sums / counts
    p = float(wilcoxon(means).pvalue) if (means != 0).any() else math.nan
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    return PairedComparison(int(counts.sum()), bootstrap_mean(differences, subjects), higher, lower, p)


def _by_subject(
    values: Sequence[float] | FloatArray, subjects: Sequence[Hashable] | None
) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the values of each subject, in order of appearance; NaN are left out."""
    array = np.asarray(values, np.float64)
    names = list(range(len(array))) if subjects is None else list(subjects)
    kept = [(name, value) for name, value in zip(names, array) if not math.isnan(value)]
    order = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in kept))}
    places = np.array([order[name] for name, _ in kept], int)
    sums = np.bincount(places, np.array([value for _, value in kept], np.float64), len(order))
    return sums.astype(np.float64), np.bincount(places, minlength=len(order)).astype(np.float64)
