"""Read the scores of the last validation, by class, off the engine that ran it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine


@dataclass(frozen=True)
class ValidationScores:
    """The key metric of a validation, and its mean over the cases by class.

    Args:
        mean: the key metric.
        classes: by name; None for a class that no validation case has.
    """

    mean: float
    classes: dict[str, float | None] = field(default_factory=dict)


def validation_scores(
    validator: Engine, epoch: int, class_names: Mapping[str | int, str] | None = None
) -> ValidationScores | None:
    """Return the scores of the validation that a trainer ran at the end of an epoch; None if it ran none.

    Args:
        validator: an evaluator whose key metric keeps its details, as MONAI's ``MeanDice`` does.
        epoch: of the trainer.
        class_names: class number to name; background may be among them. None gives no scores by class.
    """
    state: Any = validator.state  # with the attributes that MONAI's engines add
    if state.epoch != epoch:
        return None
    name = state.key_metric_name
    details = getattr(state, "metric_details", {}).get(name)
    classes = {}
    if details is not None and class_names is not None:
        means = torch.nanmean(torch.as_tensor(details).detach().cpu().double(), dim=0)
        names = [class_names[key] for key in sorted(class_names, key=int)][-len(means) :]  # without the background
        classes = {one: None if math.isnan(score) else score for one, score in zip(names, means.tolist())}
    return ValidationScores(float(state.metrics[name]), classes)
