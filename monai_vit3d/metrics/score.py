"""Compute one score over a whole section of a data set, as a MONAI metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.data.task_names import resolve_task

from .classification import accuracy, auc, decode, expected_calibration_error, negative_log_likelihood
from .regression import mean_absolute_error, r2


class Score(NamedTuple):
    """A score: its function of predictions, labels and the task, and the tasks that have it."""

    function: Callable[[Any, Any, str], float]
    tasks: tuple[str, ...]


CLASSES = ("multi-class", "multi-label", "ordinal")
SCORES = {
    "auc": Score(auc, CLASSES),
    "accuracy": Score(accuracy, CLASSES),
    "ece": Score(expected_calibration_error, CLASSES),
    "nll": Score(negative_log_likelihood, CLASSES),
    "mae": Score(lambda predictions, labels, task: mean_absolute_error(predictions, labels), ("regression",)),
    "r2": Score(lambda predictions, labels, task: r2(predictions, labels), ("regression",)),
}


class ClassificationScore(CumulativeIterationMetric):
    """Compute a score of all cases together, gathered over batches and processes.

    A sampler that repeats cases to give every process the same number, as torch's DistributedSampler does, counts
    these twice; MONAI's with ``even_divisible=False`` does not.

    Args:
        score: a key of ``SCORES``: ``"auc"``, ``"accuracy"``, ``"ece"``, ``"nll"``; for regression ``"mae"``, ``"r2"``.
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"``, ``"regression"``, or MedMNIST's name for one.

    Raises:
        ValueError: an unknown score or task, or a score that is not for the task.

    Example:
        >>> metric = ClassificationScore("accuracy", "multi-class")
        >>> _ = metric(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        >>> metric.aggregate().item()
        0.5
    """

    def __init__(self, score: str, task: str = "multi-class") -> None:
        super().__init__()
        self.score, self.task = score, resolve_task(task)
        fitting = [name for name, row in SCORES.items() if self.task in row.tasks]
        if score not in fitting:
            names = ", ".join(map(repr, fitting))
            raise ValueError(f"score={score!r} for task={self.task!r}; expected one of {names}.")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> list[Tensor]:
        """Keep the rows: predictions ``(B, K)`` and target vectors ``(B, K)``, ordinal ``(B, K - 1)``."""
        shape = None if y is None else tuple(y.shape)
        expected = (len(y_pred), y_pred.shape[-1] - (self.task == "ordinal"))
        if y is None or y_pred.ndim != 2 or shape != expected:
            raise ScoreError(
                f"predictions {tuple(y_pred.shape)} with targets {shape}; task {self.task!r} needs (cases, classes) "
                f"and {expected}, see networks.encode_target."
            )
        return [convert_to_tensor(x, dtype=torch.float32, track_meta=False) for x in (y_pred, y)]

    def aggregate(self) -> Tensor:
        """Compute the score of all cases so far, of all processes; float64, no dimensions.

        Raises:
            ScoreError: no cases, or cases from which the score cannot be computed.
        """
        rows = self.get_buffer()
        if rows is None:
            raise ScoreError(f"{self.score}: no cases to score. Give one case or more.")
        value = SCORES[self.score].function(rows[0], decode(rows[1], self.task), self.task)
        return torch.tensor(value, dtype=torch.float64)
