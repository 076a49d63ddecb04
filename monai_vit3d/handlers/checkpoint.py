"""Checkpoints that are whole or not there, and a run that continues from them exactly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..data.errors import WeightsError
from ..data.files import replacing
from ..networks.modes import unwrapped
from ..weights.files import read_checkpoint

logger = logging.getLogger(__name__)


def save_atomic(obj: Any, path: str | Path) -> None:
    """``torch.save`` to a file of the same folder, flushed to disk, then moved over ``path`` in one step.

    Args:
        obj: what to save.
        path: the final name; its folder is made if it is not there.
    """
    with replacing(path, "wb") as file:
        torch.save(obj, file)


class AtomicCheckpoint:
    """Save a run's whole state after every epoch, and the best weights by the validation metric.

    ``last.pt`` in ``folder`` holds the state of everything in ``objects`` and the run's position; ``best_path``
    holds one state dict only. With ``resume``, a run that finds ``last.pt`` continues after the epoch it holds;
    together with :class:`EpochSeed` it continues exactly.

    Args:
        folder: where ``last.pt`` goes.
        objects: what a resumed run needs back, by name: network, optimizer, scheduler, moving average.
        best: the network whose state dict is saved when the metric improves.
        best_path: the file for it.
        validator: the engine that has the metric, run inside the trainer's epoch; None saves no best weights.
        resume: whether to continue from ``last.pt`` where there is one.
        rank: of this process; only rank 0 writes.
    """

    def __init__(
        self,
        folder: str | Path,
        objects: dict[str, Any],
        best: torch.nn.Module | None = None,
        best_path: str | Path | None = None,
        validator: Engine | None = None,
        resume: bool = True,
        rank: int = 0,
    ) -> None:
        self.last = Path(folder) / "last.pt"
        # a run saved by several processes resumes in one, and the other way round
        self.objects = {k: unwrapped(v) for k, v in objects.items()}
        self.best, self.best_path, self.validator = best, best_path, validator
        self.resume, self.rank = resume, rank
        self.best_metric = float("-inf")

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that runs the validator."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def restore(self, engine: Engine) -> None:
        """Continue from ``last.pt`` if it is there.

        Raises:
            WeightsError: the file is damaged, or another run's: other networks, epochs or steps.
        """
        if not self.resume or not self.last.is_file():
            return
        state = read_checkpoint(self.last)
        anew = "To start anew, move the file away, choose another output folder, or set resume to false."
        try:
            length, wanted = state["length"], [engine.state.max_epochs, engine.state.epoch_length]
            if length != wanted:  # the schedules in it would end elsewhere
                raise ValueError(f"it has {length} epochs and steps, this run has {wanted}")
            for name, obj in self.objects.items():
                obj.load_state_dict(state[name])
            engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
            self.best_metric = state["best_metric"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{self.last}: not a checkpoint of this run ({error}). {anew}") from error
        logger.info("resumed from %s after epoch %d", self.last, state["epoch"])

    def __call__(self, engine: Engine) -> None:
        """Save the epoch that ended."""
        metric = self._new_metric(engine.state.epoch)
        improved = metric is not None and metric > self.best_metric
        self.best_metric = max(self.best_metric, metric) if metric is not None else self.best_metric
        if self.rank != 0:
            return
        state = {name: obj.state_dict() for name, obj in self.objects.items()}
        position = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "length": [engine.state.max_epochs, engine.state.epoch_length],
            "best_metric": self.best_metric,
        }
        if improved and self.best is not None and self.best_path is not None:
            save_atomic(self.best.state_dict(), self.best_path)
            logger.info("epoch %d: best metric so far %.4f, saved %s", engine.state.epoch, metric, self.best_path)
        save_atomic({**state, **position}, self.last)

    def _new_metric(self, epoch: int) -> float | None:
        """The key metric, if the validator ran for this epoch."""
        if self.validator is None or self.validator.state.epoch != epoch:
            return None
        metrics = self.validator.state.metrics
        return float(metrics[self.validator.state.key_metric_name])
