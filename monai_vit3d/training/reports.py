"""Report the course of a training to whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ignite.engine import Engine, Events

from monai_vit3d.handlers.learning_curve import LearningCurve
from monai_vit3d.handlers.validation_scores import ValidationScores, validation_scores


@dataclass(frozen=True)
class StartReport:
    """A training that is about to run its first step.

    Args:
        fold: which one; None for a bundle without folds.
        epoch: how many epochs are done, those of the run that is resumed.
        epochs: how many there will be.
        steps: in an epoch.
    """

    fold: int | None
    epoch: int
    epochs: int
    steps: int


@dataclass(frozen=True)
class EpochReport:
    """An epoch that ended.

    Args:
        fold: which one; None for a bundle without folds.
        epoch: its number, from 1.
        epochs: how many there will be.
        loss: mean over its steps.
        seconds_left: until the end of this fold, at the pace so far.
        scores: of the validation after this epoch; None without one.
        best: whether these are the best scores of the run.
    """

    fold: int | None
    epoch: int
    epochs: int
    loss: float
    seconds_left: float
    scores: ValidationScores | None = None
    best: bool = False


class TrainingReporter:
    """Call functions as a trainer and its validator go on.

    Args:
        fold: for the reports.
        validator: the engine that validates, or None.
        class_names: class number to name, for the scores by class.
        curve: knows the scores of the run that is resumed; None compares those from now on.
        on_start: called with a :class:`StartReport`.
        on_step: called after each step.
        on_validation: called after each validation case with the cases done and all cases.
        on_epoch: called with an :class:`EpochReport`.
    """

    def __init__(
        self,
        fold: int | None,
        validator: Engine | None = None,
        class_names: Mapping[str | int, str] | None = None,
        curve: LearningCurve | None = None,
        on_start: Callable[[StartReport], Any] | None = None,
        on_step: Callable[[], Any] | None = None,
        on_validation: Callable[[int, int], Any] | None = None,
        on_epoch: Callable[[EpochReport], Any] | None = None,
    ) -> None:
        self.fold, self.validator, self.class_names, self.curve = fold, validator, class_names, curve
        self.on_start, self.on_step, self.on_validation, self.on_epoch = on_start, on_step, on_validation, on_epoch
        self.best_score: float | None = None
        self._losses: list[float] = []
        self._started, self._first_step = 0.0, 0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after all its other handlers."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        if self.validator is not None:
            self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._validate)

    def _start(self, engine: Engine) -> None:
        self._started, self._first_step = time.monotonic(), engine.state.iteration
        self.best_score = None if self.curve is None else self.curve.best_mean()
        if self.on_start is not None:
            self.on_start(StartReport(self.fold, engine.state.epoch, *_length(engine)))

    def _step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._losses.append(float((output[0] if isinstance(output, list) else output)["loss"]))
        if self.on_step is not None:
            self.on_step()

    def _validate(self, engine: Engine) -> None:
        if self.on_validation is not None:
            self.on_validation(engine.state.iteration, engine.state.epoch_length or 0)

    def _epoch(self, engine: Engine) -> None:
        epoch, (epochs, steps) = engine.state.epoch, _length(engine)
        scores = None if self.validator is None else validation_scores(self.validator, epoch, self.class_names)
        best = scores is not None and (self.best_score is None or scores.mean > self.best_score)
        if scores is not None and best:
            self.best_score = scores.mean
        pace = (time.monotonic() - self._started) / max(1, engine.state.iteration - self._first_step)
        left = pace * (epochs * steps - engine.state.iteration)
        loss = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        if self.on_epoch is not None:
            self.on_epoch(EpochReport(self.fold, epoch, epochs, loss, left, scores, best))


def _length(engine: Engine) -> tuple[int, int]:
    """Return how many epochs a trainer runs, and steps in each."""
    return engine.state.max_epochs or 0, engine.state.epoch_length or 0
