"""Score predicted values in float64: mean absolute error and R²."""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_vit3d.data.errors import ScoreError

from .checks import FloatArray, as_array, require_finite


def mean_absolute_error(predictions: Any, labels: Any) -> float:
    """Average ``|prediction - label|`` over cases and values, in the labels' unit.

    Args:
        predictions: ``(N,)`` or ``(N, L)``.
        labels: as many.

    Raises:
        ScoreError: nothing to score, shapes that do not fit, NaN or infinite values.
    """
    predictions, labels = _check_values(predictions, labels)
    return float(np.abs(predictions - labels).mean())


def r2(predictions: Any, labels: Any) -> float:
    """Compute the coefficient of determination R², averaged over values; 1 is perfect, 0 as good as the labels' mean.

    Args:
        predictions: ``(N,)`` or ``(N, L)``.
        labels: as many.

    Raises:
        ScoreError: as for :func:`mean_absolute_error`, or labels that are all equal: R² is undefined then.
    """
    from sklearn.metrics import r2_score

    predictions, labels = _check_values(predictions, labels)
    same = np.flatnonzero(labels.min(0) == labels.max(0))
    if same.size:
        raise ScoreError(
            f"value {same[0]} is {labels[0, same[0]]:g} in all {len(labels)} cases: R² is undefined. Score more cases, "
            "or use the mean absolute error."
        )
    return float(r2_score(labels, predictions))


def _check_values(predictions: Any, labels: Any) -> tuple[FloatArray, FloatArray]:
    """Check both, and reshape them to ``(N, L)``."""
    predictions, labels = as_array(predictions), as_array(labels)
    if len(predictions) != len(labels) or predictions.size != labels.size:
        raise ScoreError(f"predictions of shape {predictions.shape}, labels of {labels.shape}: expected equal ones.")
    require_finite(predictions, "predictions")
    require_finite(labels, "labels")
    return predictions.reshape(len(labels), -1), labels.reshape(len(labels), -1)
