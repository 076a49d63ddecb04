"""Check scores and labels, and turn them into float64 arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.data.task_names import resolve_task

FloatArray = NDArray[np.float64]


def check_scores(scores: Any, labels: Any, task: str) -> tuple[FloatArray, FloatArray]:
    """Check scores of classes or labels, and the labels that they are compared with.

    Args:
        scores: ``(N, K)``, any finite numbers.
        labels: class numbers ``(N,)`` or ``(N, 1)``, as MedMNIST's are; multi-label: zeros and ones ``(N, K)``.
        task: one with classes, by our name or MedMNIST's.

    Returns:
        Scores ``(N, K)``; class numbers ``(N,)`` or, multi-label, ``(N, K)``.

    Raises:
        ScoreError: nothing to score, shapes that do not fit, a NaN or infinite score, a label without a class.
        ValueError: an unknown task, or regression.
    """
    multi_label = _classes_task(task) == "multi-label"
    scores, labels = as_array(scores), as_array(labels)
    least = 1 if multi_label else 2
    if scores.ndim != 2 or scores.shape[1] < least:
        raise ScoreError(f"scores of shape {scores.shape}; expected (cases, classes) with {least} or more classes.")
    shape = scores.shape if multi_label else scores.shape[:1]
    if len(labels) != len(scores) or labels.size != np.prod(shape):
        raise ScoreError(f"labels of shape {labels.shape} for scores of shape {scores.shape}; expected {shape}.")
    labels = labels.reshape(shape)
    require_finite(scores, "scores")
    _require_classes(labels, 2 if multi_label else scores.shape[1])
    return scores, labels


def check_probabilities(
    probabilities: Any, labels: Any, task: str, sums: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Check like :func:`check_scores`, for measures that need probabilities.

    Args:
        probabilities: ``(N, K)``, 0 to 1.
        labels: see :func:`check_scores`.
        task: see :func:`check_scores`.
        sums: whether those of a case must sum to 1 if only one class is right, within the rounding of 16 bits.

    Raises:
        ScoreError: as there, and for scores that are not probabilities.
    """
    scores, labels = check_scores(probabilities, labels, task)
    outside = (scores < -1e-4) | (scores > 1 + 1e-4)
    if outside.any():
        first = _first(outside)
        raise ScoreError(
            f"scores from {scores.min():.6g} to {scores.max():.6g}, the first outside 0 to 1 in case {first}: "
            "expected probabilities. Apply softmax or sigmoid to logits."
        )
    total = scores.sum(1)
    wrong = np.abs(total - 1) > 0.02
    if sums and resolve_task(task) != "multi-label" and wrong.any():
        first = _first(wrong)
        raise ScoreError(
            f"the probabilities of case {first} sum to {total[first]:.6g}; expected 1. Apply softmax, not sigmoid, to "
            "logits, or name the task multi-label."
        )
    return scores, labels


def as_array(values: Any) -> FloatArray:
    """Convert a tensor on any device or an array-like to a float64 array.

    Raises:
        ScoreError: it is empty.
    """
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    if array.size == 0:
        raise ScoreError(f"nothing to score in an array of shape {array.shape}. Give one case or more.")
    return np.atleast_1d(array)


def require_finite(values: FloatArray, name: str) -> None:
    """Refuse NaN and infinity.

    Args:
        values: one row for each case.
        name: of the values, for the message.

    Raises:
        ScoreError: how many, and the first case that has one.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        raise ScoreError(
            f"{name}: {bad.sum()} of {bad.size} are NaN or infinite, the first in case {_first(bad)}. Look at that "
            "case's image, and at whether the training diverged."
        )


def _first(wrong: NDArray[np.bool_]) -> int:
    """Index of the first case with a True."""
    return int(np.argwhere(wrong)[0, 0])


def _classes_task(task: str) -> str:
    task = resolve_task(task)
    if task == "regression":
        raise ValueError("task='regression' has no classes: use mean_absolute_error or r2.")
    return task


def _require_classes(labels: FloatArray, classes: int) -> None:
    wrong = ~np.isin(labels, np.arange(classes))
    if wrong.any():
        first = _first(wrong)
        raise ScoreError(
            f"label {labels[wrong][0]:g} of case {first}; expected a whole number from 0 to {classes - 1}."
        )
