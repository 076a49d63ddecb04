"""Save checkpoints atomically, and continue a run from them exactly."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.data.files import remove_parts, replacing
from monai_vit3d.data.training_lock import lock_training, unlock_training
from monai_vit3d.networks.checkpoints import read_checkpoint
from monai_vit3d.networks.weights_sha256 import weights_sha256
from monai_vit3d.networks.wrappers import load_plain_state_dict, plain_state_dict, unwrap_network

from .finite import require_finite_weights

logger = logging.getLogger(__name__)


def save_atomic(obj: Any, path: str | Path) -> None:
    """Run ``torch.save`` to a file of the same folder, flush it to disk, then move it over ``path`` in one step.

    Args:
        obj: what to save.
        path: the final name; its folder is made if it is not there.
    """
    with replacing(path, "wb") as file:
        torch.save(obj, file)


class AtomicCheckpoint:
    """Save a run's whole state after every epoch, and the best weights by the validation metric.

    ``last.pt`` in ``folder`` holds the state of everything in ``objects`` and the run's position, ``previous.pt`` that
    of the epoch before; ``best_path`` holds one state dict only. Its keys are those of the network without wrappers.
    Weights that are not finite are never written.

    With ``resume``, a run that finds ``last.pt`` continues after the epoch it holds; together with
    :class:`EpochSeed` it continues exactly. With another number of epochs it continues, too: its learning rate is
    then the one that the longer or shorter run has at this epoch. Only the first start of a trainer continues from a
    file, and only if the networks hold the weights that they held when this handler was built (their SHA-256 is
    compared): a federated client, which its server has given other weights, trains these.

    Args:
        folder: where ``last.pt`` goes.
        objects: the objects to restore in a resumed run, by name: network, optimizer, scheduler, moving average.
        best: the network whose state dict is saved when the metric improves.
        best_path: the file for it.
        validator: the engine that has the metric, run inside the trainer's epoch; None saves no best weights.
        resume: whether to continue from ``last.pt`` where there is one.
        rank: of this process among all, on all machines; only rank 0 writes.
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
        self.last, self.previous = Path(folder) / "last.pt", Path(folder) / "previous.pt"
        # a run saved by several processes resumes in one, and the other way round
        self.objects = {k: unwrap_network(v) for k, v in objects.items()}
        self.best, self.best_path, self.validator = best, best_path, validator
        self.resume, self.rank = resume, rank
        self.best_metric = float("-inf")
        self._digest = weights_sha256(self._networks().values()) if resume else None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that runs the validator."""
        if self.rank == 0:
            engine.add_event_handler(Events.STARTED, self.lock)
            engine.add_event_handler(Events.COMPLETED, self.unlock)
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def lock(self) -> None:
        """Keep other trainings from writing the same files, and remove half-written files of a killed one.

        Raises:
            UsageError: another training is running there.
        """
        written = [self.last, *([] if self.best_path is None else [Path(self.best_path)])]
        for path in written:
            lock_training(path)
        remove_parts([*written, self.previous])

    def unlock(self) -> None:
        """Allow other trainings to write the files."""
        for path in (self.last, self.best_path):
            if path is not None:
                unlock_training(path)

    def restore(self, engine: Engine) -> None:
        """Continue from ``last.pt`` if it exists, or from ``previous.pt`` if only that exists.

        Raises:
            WeightsError: the file is damaged, or of another run: other networks, other steps in an epoch, or more
                epochs than this run will have.
        """
        if engine.state.iteration > 0:  # a trainer that is run again, as a federated client's, has its position
            return
        path = next((file for file in (self.last, self.previous) if file.is_file()), None)
        if not self.resume or path is None:
            return
        if weights_sha256(self._networks().values()) != self._digest:
            logger.warning(
                "%s is not resumed from: the network was given other weights after it was built, and these are trained "
                "from here on. Set resume to false to say so.", path
            )  # fmt: skip
            self.best_metric = self._read(path)["best_metric"]  # best_path is of the runs before, and stays if better
            return
        self._load(engine, path)
        logger.info("resumed from %s after epoch %d", path, engine.state.epoch)

    def _load(self, engine: Engine, path: Path) -> None:
        state = self._read(path)
        try:
            epochs, steps = state["length"]
            if steps != engine.state.epoch_length:
                raise ValueError(f"it has {steps} steps in an epoch, this run has {engine.state.epoch_length}")
            if state["epoch"] > engine.state.max_epochs:
                raise ValueError(
                    f"it has {state['epoch']} epochs done, this run is to end after {engine.state.max_epochs}"
                )
            recomputed = self._schedules() if epochs != engine.state.max_epochs else {}
            for name, schedule in recomputed.items():
                _step_to(schedule, state[name]["last_epoch"])
            for name in self.objects.keys() - recomputed.keys():
                _load_into(self.objects[name], state[name])
            for schedule in recomputed.values():
                for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr()):
                    group["lr"] = rate
            engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
            self.best_metric = state["best_metric"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{path}: not a checkpoint of this run ({error}). To start anew, move the file away, choose another "
                "output folder, or set resume to false."
            ) from error

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read_checkpoint(path)
        except WeightsError as error:
            if path == self.last and self.previous.is_file():
                advice = f"Move {self.previous} over it to go on from the epoch before."
                raise WeightsError(f"{error} {advice}") from error
            raise

    def _networks(self) -> dict[str, nn.Module]:
        return {name: obj for name, obj in self.objects.items() if isinstance(obj, nn.Module)}

    def _schedules(self) -> dict[str, LRScheduler]:
        """Select the schedules that depend on steps alone."""
        return {
            name: obj
            for name, obj in self.objects.items()
            if isinstance(obj, LRScheduler) and not isinstance(obj, ReduceLROnPlateau)
        }

    def __call__(self, engine: Engine) -> None:
        """Save the epoch that ended.

        Raises:
            TrainingDiverged: weights that are not finite; nothing is written then.
        """
        metric = self._new_metric(engine.state.epoch)
        improved = metric is not None and metric > self.best_metric
        self.best_metric = max(self.best_metric, metric) if metric is not None else self.best_metric
        for network in self._networks().values():
            require_finite_weights(network, engine)
        if self.rank != 0:
            return
        state = {name: _state_of(obj) for name, obj in self.objects.items()}
        position = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "length": [engine.state.max_epochs, engine.state.epoch_length],
            "best_metric": self.best_metric,
        }
        if improved and self.best is not None and self.best_path is not None:
            save_atomic(_state_of(self.best), self.best_path)
            logger.info("epoch %d: best metric so far %.4f, saved %s", engine.state.epoch, metric, self.best_path)
        if self.last.is_file():  # a run that is interrupted between these two lines resumes from previous.pt
            self.last.replace(self.previous)
        save_atomic({**state, **position}, self.last)

    def _new_metric(self, epoch: int) -> float | None:
        """Return the key metric if the validator ran for this epoch."""
        if self.validator is None or self.validator.state.epoch != epoch:
            return None
        state: Any = self.validator.state  # with the attributes that MONAI's engines add
        return float(state.metrics[state.key_metric_name])


def _state_of(obj: Any) -> dict[str, Any]:
    return plain_state_dict(obj) if isinstance(obj, nn.Module) else obj.state_dict()


def _load_into(obj: Any, state: dict[str, Any]) -> None:
    if isinstance(obj, nn.Module):
        load_plain_state_dict(obj, state)
    else:
        obj.load_state_dict(state)


def _step_to(schedule: LRScheduler, step: int) -> None:
    """Advance a new schedule to a step, as a run of so many steps would have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the optimizer's steps were another process's
        while schedule.last_epoch < step:
            schedule.step()
