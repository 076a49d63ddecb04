"""Score classifiers: AUC and accuracy as MedMNIST defines them, expected calibration error, negative log-likelihood.

Everything is computed in float64. ``task`` is ``"multi-class"``, ``"multi-label"`` or ``"ordinal"``, or MedMNIST's
name for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.data.task_names import resolve_task

from .checks import FloatArray, check_probabilities, check_scores


def auc(probabilities: Any, labels: Any, task: str) -> float:
    """Compute the area under the ROC curve as MedMNIST's Evaluator (Yang et al. 2023, 10.1038/s41597-022-01721-8).

    It is the mean over classes, each against the rest, or over labels; of two classes, the area of the last one.

    Args:
        probabilities: ``(N, K)``, or other scores in the order of probabilities.
        labels: class numbers ``(N,)``; multi-label: zeros and ones ``(N, K)``.
        task: see above.

    Raises:
        ScoreError: scores or labels that do not fit or are not finite; a class or label that all cases or none have.
    """
    from sklearn.metrics import roc_auc_score

    scores, labels = check_scores(probabilities, labels, task)
    _require_all_classes(scores, labels)
    if labels.ndim == 2:
        truths = labels
    else:
        truths = labels[:, None] == np.arange(scores.shape[1])
        if scores.shape[1] == 2:
            truths, scores = truths[:, 1:], scores[:, 1:]
    return float(np.mean([roc_auc_score(truth, score) for truth, score in zip(truths.T, scores.T)]))


def accuracy(probabilities: Any, labels: Any, task: str) -> float:
    """Compute the share of correct predictions as MedMNIST's Evaluator.

    The prediction is the class of the highest probability; of two classes, the last one if it is above 0.5.
    Multi-label: the mean over labels, which are predicted above 0.5.

    Args:
        probabilities: ``(N, K)``.
        labels: class numbers ``(N,)``; multi-label: zeros and ones ``(N, K)``.
        task: see above.

    Raises:
        ScoreError: probabilities or labels that do not fit, are not finite or out of range.
    """
    scores, labels = check_probabilities(probabilities, labels, task)
    if labels.ndim == 1 and scores.shape[1] > 2:
        return float(np.mean(scores.argmax(1) == labels))
    predictions = (scores if labels.ndim == 2 else scores[:, 1]) > 0.5
    return float(np.mean(predictions == labels))


def expected_calibration_error(probabilities: Any, labels: Any, task: str, bins: int = 15) -> float:
    """Average the gap between confidence and accuracy over bins of confidence (Guo et al. 2017, 1706.04599, eq. 3).

    The confidence is the highest probability; bins have equal width and hold their upper ends. Multi-label: the
    mean over labels, each with the two classes "absent" and "present".

    Args:
        probabilities: ``(N, K)``.
        labels: class numbers ``(N,)``; multi-label: zeros and ones ``(N, K)``.
        task: see above.
        bins: number of bins.

    Raises:
        ScoreError: probabilities or labels that do not fit, are not finite or out of range.
        ValueError: no bins.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}; expected one or more.")
    scores, labels = check_probabilities(probabilities, labels, task, sums=True)
    if labels.ndim == 1:
        return _top_label_error(scores, labels, bins)
    pairs = [np.stack([1 - score, score], 1) for score in scores.T]
    return float(np.mean([_top_label_error(pair, label, bins) for pair, label in zip(pairs, labels.T)]))


def negative_log_likelihood(probabilities: Any, labels: Any, task: str) -> float:
    """Average -log(probability of the true class) over cases and, multi-label, over labels: the cross-entropy.

    Probabilities are kept a float64 epsilon away from 0 and 1, as scikit-learn's ``log_loss`` does.

    Args:
        probabilities: ``(N, K)``.
        labels: class numbers ``(N,)``; multi-label: zeros and ones ``(N, K)``.
        task: see above.

    Raises:
        ScoreError: probabilities or labels that do not fit, are not finite or out of range.
    """
    scores, labels = check_probabilities(probabilities, labels, task, sums=True)
    if labels.ndim == 2:
        true = np.where(labels == 1, scores, 1 - scores)
    else:
        true = scores[np.arange(len(scores)), labels.astype(int)]
    margin = np.finfo(np.float64).eps
    return float(-np.log(np.clip(true, margin, 1 - margin)).mean())


def decode(targets: Any, task: str) -> Any:
    """Convert target vectors of the task's loss back to labels.

    Args:
        targets: tensor ``(..., K)`` one-hot, or ``(..., K - 1)`` of an ordinal task's levels "above class k"; multi-hot
            labels or values of the other tasks.
        task: see above, or ``"regression"``.

    Returns:
        Class numbers ``(...)``, int64; multi-label and regression: ``targets``.

    Raises:
        ValueError: an unknown task.
    """
    task = resolve_task(task)
    if task == "multi-class":
        return targets.argmax(-1)
    return targets.sum(-1).round().long() if task == "ordinal" else targets


def _top_label_error(scores: FloatArray, labels: FloatArray, bins: int) -> float:
    confidence, right = scores.max(1), scores.argmax(1) == labels
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    index = np.searchsorted(inner, confidence)  # bin m: inner[m - 1] < confidence <= inner[m]
    # share of the cases in a bin times (accuracy - confidence) in it
    gaps = np.bincount(index, weights=right - confidence) / len(scores)
    return float(np.abs(gaps).sum())


def _require_all_classes(scores: FloatArray, labels: FloatArray) -> None:
    """Refuse labels for which the AUC is undefined.

    Raises:
        ScoreError: which classes or labels.
    """
    if labels.ndim == 2:
        absent = [f"label {k} is {labels[0, k]:g}" for k in np.flatnonzero(labels.min(0) == labels.max(0))]
        problem = f"{', '.join(absent)} in all {len(labels)} cases"
    else:
        absent = [str(k) for k in range(scores.shape[1]) if not (labels == k).any()]
        problem = f"none of {len(labels)} cases is of class {', '.join(absent)}"
    if absent:
        raise ScoreError(f"{problem}: the AUC is undefined. Score cases of every class, or use the accuracy.")
