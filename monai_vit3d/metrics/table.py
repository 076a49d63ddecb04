"""Format a classifier's predictions as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.data.task_names import resolve_task


class PredictionTable:
    """Format ``probability_NAME`` of each class and ``prediction``.

    The prediction is the name of the most probable class; multi-label: the names of all above 0.5, joined by ``|``.
    Regression has ``prediction`` alone or, of several values, ``prediction_NAME``.

    Args:
        class_names: of the classes, labels or values, in the network's order.
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"``, ``"regression"``, or MedMNIST's name for one.

    Raises:
        ValueError: an unknown task, or class names that cannot be told apart.
    """

    def __init__(self, class_names: Sequence[str], task: str = "multi-class") -> None:
        self.class_names, self.task = [str(name) for name in class_names], resolve_task(task)
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(f"class_names={class_names}; expected one or more, each of them once.")
        if self.task == "multi-label" and any("|" in name for name in self.class_names):
            raise ValueError(f"class_names={class_names}; '|' joins the labels of a case, none may hold it.")

    def header(self, *answers: str) -> list[str]:
        """List the names of the columns; ``answers`` are the columns after the probabilities, or ``prediction``."""
        names, answers = self.class_names, answers or ("prediction",)
        if self.task != "regression":
            return [f"probability_{name}" for name in names] + list(answers)
        return [f"{answer}_{name}" for answer in answers for name in names] if len(names) > 1 else list(answers)

    def cells(self, pred: Tensor) -> list[str]:
        """Format a case's probabilities and prediction.

        Args:
            pred: a number for each class.

        Raises:
            ScoreError: NaN or infinite numbers, or not one for each class.
        """
        pred = pred.detach().flatten().cpu().float()
        if len(pred) != len(self.class_names):
            raise ScoreError(f"{len(pred)} probabilities for {len(self.class_names)} class names.")
        if not torch.isfinite(pred).all():
            raise ScoreError("NaN or infinite probabilities. Look at the image, and at the weights.")
        best = pred.argmax() if self.task in ("multi-class", "ordinal") else pred
        numbers = [] if self.task == "regression" else [f"{p:.6g}" for p in pred.tolist()]
        return numbers + self.answer(best)

    def answer(self, value: Tensor) -> list[str]:
        """Format a class number, labels or values."""
        if self.task == "regression":
            return [f"{v:.6g}" for v in value.tolist()]
        if self.task == "multi-label":
            return ["|".join(name for name, v in zip(self.class_names, value.tolist()) if v > 0.5)]
        return [self.class_names[int(value)]]
