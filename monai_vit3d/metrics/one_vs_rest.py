"""Score a classifier by class, each against the rest, and over all classes, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from .bootstrap import Interval, bootstrap_statistic
from .checks import FloatArray, check_probabilities

ALL_CLASSES = "all classes"
SCORES_OF_A_CLASS = ("auc", "accuracy", "balanced_accuracy", "f1")


def score_classes(
    probabilities: Any,
    labels: Any,
    names: Sequence[str],
    subjects: Sequence[Hashable] | None = None,
    minus: Any = None,
) -> dict[str, dict[str, Interval]]:
    """Compute AUC, accuracy, balanced accuracy and F1, each with its 95 % interval.

    AUC and accuracy of all classes are MedMNIST's, as :func:`~.classification.auc` and
    :func:`~.classification.accuracy`; balanced accuracy of all classes is the mean of their recalls, F1 the mean of
    theirs. Of one class they are those of "this class or not", its balanced accuracy the mean of sensitivity and
    specificity. A class that no case or all cases have has no AUC: NaN.

    Args:
        probabilities: ``(N, K)``.
        labels: class numbers ``(N,)``.
        names: of the K classes.
        subjects: of the cases, drawn whole for the intervals; None takes each case for one.
        minus: probabilities of another classifier for the same cases: the scores are differences to its, and their
            intervals paired, as both are computed of the cases of each draw.

    Returns:
        Scores by class, and of all of them under ``ALL_CLASSES``.

    Raises:
        ScoreError: probabilities or labels that do not fit, are not finite or out of range.
    """
    scores, truth = check_probabilities(probabilities, labels, "multi-class", sums=True)
    others = None if minus is None else check_probabilities(minus, labels, "multi-class", sums=True)[0]
    rows = [ALL_CLASSES, *names]

    def statistic(cases: Any) -> FloatArray:
        own = _table(scores[cases], truth[cases])
        return own if others is None else own - _table(others[cases], truth[cases])

    intervals = bootstrap_statistic(statistic, len(scores), subjects)
    table = np.array(intervals, object).reshape(len(rows), len(SCORES_OF_A_CLASS), 3)
    return {
        row: {score: Interval(*map(float, cell)) for score, cell in zip(SCORES_OF_A_CLASS, cells)}
        for row, cells in zip(rows, table)
    }


def score_values(
    predictions: Any, labels: Any, subjects: Sequence[Hashable] | None = None, minus: Any = None
) -> Mapping[str, Interval]:
    """Compute mean absolute error and R² of one value, each with its 95 % interval.

    Args:
        predictions: ``(N,)``.
        labels: ``(N,)``; R² is NaN where they are all equal.
        subjects: as for :func:`score_classes`.
        minus: another's predictions for the same cases: the scores are differences to its, paired by case.
    """
    values, truth = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    others = None if minus is None else np.asarray(minus, np.float64)

    def statistic(cases: Any) -> FloatArray:
        own = _value_scores(values[cases], truth[cases])
        return own if others is None else own - _value_scores(others[cases], truth[cases])

    return dict(zip(("mae", "r2"), bootstrap_statistic(statistic, len(values), subjects)))


def _value_scores(values: FloatArray, truth: FloatArray) -> FloatArray:
    """Compute mean absolute error and R²."""
    errors, total = values - truth, ((truth - truth.mean()) ** 2).sum()
    return np.array([np.abs(errors).mean(), 1 - (errors**2).sum() / total if total else np.nan])


def predicted_classes(probabilities: FloatArray) -> Any:
    """Return the class numbers that MedMNIST's accuracy takes: the most probable; of two, the last if above 0.5."""
    return probabilities.argmax(1) if probabilities.shape[1] > 2 else (probabilities[:, -1] > 0.5).astype(int)


def _table(scores: FloatArray, labels: FloatArray) -> FloatArray:
    """Compute the scores of all classes in the first row, and of each class; flat."""
    classes, predictions = np.arange(scores.shape[1]), predicted_classes(scores)
    truths, answers = labels[:, None] == classes, predictions[:, None] == classes
    hits, positives, negatives = (truths & answers).sum(0), truths.sum(0), (~truths).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, specificity = hits / positives, (~truths & ~answers).sum(0) / negatives
        f1 = 2 * hits / (positives + answers.sum(0))
    areas = np.array([_area(truth, score) for truth, score in zip(truths.T, scores.T)])
    by_class = np.stack([areas, (truths == answers).mean(0), (recall + specificity) / 2, f1], 1)
    area = areas[-1] if len(classes) == 2 else areas.mean()
    overall = [area, (predictions == labels).mean(), recall.mean(), f1.mean()]
    return np.concatenate([overall, by_class.ravel()])


def _area(truth: Any, score: FloatArray) -> float:
    """Compute the area under the ROC curve, from ranks (Mann & Whitney 1947); ties count half."""
    from scipy.stats import rankdata

    positives = int(truth.sum())
    if not 0 < positives < len(truth):
        return float("nan")
    ranks = rankdata(score)[truth].sum() - positives * (positives + 1) / 2
    return float(ranks / (positives * (len(truth) - positives)))
