"""Summarise the scores of all cases by class: mean with its interval, median, false negatives and positives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monai_vit3d.metrics.bootstrap import Interval, PairedComparison, bootstrap_mean, compare_pairs
from monai_vit3d.metrics.components import Detection

from .scoring import ScoredCase

ALL = "all classes"  # the mean over the classes of a case


@dataclass(frozen=True)
class MetricRow:
    """A score that is summarised.

    Args:
        name: attribute of ``LabelScores``.
        title: on the page and in the terminal; ``{mm}`` is the tolerance.
        digits: after the point.
        averaged: whether a mean over classes says anything.
        compared: whether two methods are compared by it.
    """

    name: str
    title: str
    digits: int
    averaged: bool = True
    compared: bool = True


METRICS = (
    MetricRow("dice", "Dice", 3),
    MetricRow("nsd_voxel", "NSD 1 voxel", 3),
    MetricRow("nsd_mm", "NSD {mm:g} mm", 3),
    MetricRow("hd95_mm", "HD95 mm", 2),
    MetricRow("volume_difference_ml", "Volume bias ml", 3, averaged=False, compared=False),
)


@dataclass(frozen=True)
class ClassSummary:
    """The scores of a class over all cases.

    Args:
        name: of the class, or ``ALL``.
        label: its value; None for all classes.
        cases: that have the class, in prediction or label.
        absent: cases that have it in neither; they are in no mean.
        missed: cases that have it in the label alone.
        made_up: cases that have it only in the prediction.
        means: by metric.
        medians: by metric.
        detection: components of all cases together.
    """

    name: str
    label: int | None
    cases: int
    absent: int
    missed: int
    made_up: int
    means: Mapping[str, Interval]
    medians: Mapping[str, float]
    detection: Detection


def summarise(scored: Sequence[ScoredCase]) -> list[ClassSummary]:
    """Summarise all classes together, if there are several, and each of them.

    Args:
        scored: cases; those with an error are left out.
    """
    scored = [one for one in scored if not one.error]
    classes = [_summary(column, scored) for column in zip(*(one.scores for one in scored))]
    return [_overall(classes, scored), *classes] if len(classes) > 1 else classes


def compare_cases(
    scored: Sequence[ScoredCase], others: Mapping[str, ScoredCase]
) -> dict[str, dict[str, PairedComparison]]:
    """Compare two methods on the cases that both have, by class and metric; the first minus the second.

    Args:
        scored: of the first.
        others: of the second, by the name of the case.
    """
    pairs = [(one, others[one.case.name]) for one in scored if one.case.name in others]
    pairs = [(one, other) for one, other in pairs if not one.error and not other.error]
    subjects = [one.case.subject for one, _ in pairs]
    metrics = [metric.name for metric in METRICS if metric.compared]
    names = list(dict.fromkeys(row.name for one, _ in pairs for row in one.scores))
    groups = [*([ALL] if len(names) > 1 else []), *names]
    return {
        group: {
            metric: compare_pairs(
                [_score(one, group, metric) for one, _ in pairs],
                [_score(other, group, metric) for _, other in pairs],
                subjects,
            )
            for metric in metrics
        }
        for group in groups
    }


def _score(one: ScoredCase, group: str, metric: str) -> float:
    if group == ALL:
        return one.mean(metric)
    return next((float(getattr(row, metric)) for row in one.scores if row.name == group), math.nan)


def _summary(column: Sequence, scored: Sequence[ScoredCase]) -> ClassSummary:
    present = [not math.isnan(row.dice) for row in column]
    values = {
        metric.name: [getattr(row, metric.name) if there else math.nan for row, there in zip(column, present)]
        for metric in METRICS
    }
    return ClassSummary(
        name=column[0].name,
        label=column[0].label,
        cases=sum(present),
        absent=len(present) - sum(present),
        missed=sum(row.volume_ml == 0 < row.reference_ml for row in column),
        made_up=sum(row.reference_ml == 0 < row.volume_ml for row in column),
        detection=Detection(*(sum(counts) for counts in zip(*(row.detection for row in column)))),
        **_statistics(values, scored),
    )


def _overall(classes: Sequence[ClassSummary], scored: Sequence[ScoredCase]) -> ClassSummary:
    values = {metric.name: [one.mean(metric.name) for one in scored] for metric in METRICS if metric.averaged}
    cases = sum(not math.isnan(value) for value in values["dice"])
    return ClassSummary(
        name=ALL,
        label=None,
        cases=cases,
        absent=len(scored) - cases,
        missed=sum(one.missed for one in classes),
        made_up=sum(one.made_up for one in classes),
        detection=Detection(*(sum(counts) for counts in zip(*(one.detection for one in classes)))),
        **_statistics(values, scored),
    )


def _statistics(values: Mapping[str, Sequence[float]], scored: Iterable[ScoredCase]) -> dict:
    subjects = [one.case.subject or one.case.name for one in scored]
    return {
        "means": {name: bootstrap_mean(column, subjects) for name, column in values.items()},
        "medians": {name: _median(column) for name, column in values.items()},
    }


def _median(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return float(np.median(kept)) if kept else math.nan
