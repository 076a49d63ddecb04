"""Pretrain in MONAI's trainer: draw masks for each batch, and set schedules at each optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.optim import Optimizer

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers import to_3tuple
from monai_vit3d.layers.pos_embed import GridShape
from monai_vit3d.networks.wrappers import unwrap_network
from monai_vit3d.pretraining import JEPAMasks, MAEMasks

Masks = JEPAMasks | MAEMasks
Schedule = Callable[[int, int], float]


def image_of(batch: Any, key: str) -> Tensor:
    """Take the volumes ``(B, C, H, W, D)`` out of a data loader's batch; a MetaTensor keeps its affines.

    Raises:
        UsageError: the batch is not a dictionary with this key, or its value is not a batch of volumes.
    """
    if not isinstance(batch, Mapping) or key not in batch:
        is_mapping = isinstance(batch, Mapping)
        received = f"the keys {', '.join(map(str, batch))}" if is_mapping else f"type {type(batch).__name__}"
        raise UsageError(f"batch with {received}; expected a dictionary with {key!r}. Set key to the volumes' name.")
    image = batch[key] if isinstance(batch[key], MetaTensor) else convert_to_tensor(batch[key], track_meta=False)
    if not isinstance(image, Tensor) or image.dim() != 5:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise UsageError(
            f"batch[{key!r}]: {shape}; expected volumes (B, C, H, W, D). Add a channel axis or batch them."
        )
    return image


class PrepareBatchMasked(PrepareBatch):
    """Draw masks of the volumes' tokens for ``network(image, masks)``; for a trainer's ``prepare_batch``.

    Give the same object to ``prepare_batch`` and to ``train_handlers``: masks depend on the seed and the trainer's
    iteration alone, so a resumed run draws the same masks as an uninterrupted one. They are drawn for the batches of
    all processes together, of which this process takes every ``world``-th row: counts are the same everywhere, and
    with torch's DistributedSampler, which deals samples out in this way, each sample gets the mask that it would get
    in one process with the whole batch.

    Args:
        masks: called as ``masks(batch, grid, generator=generator)``, such as
            :func:`~monai_vit3d.pretraining.sample_jepa_masks` or
            :func:`~monai_vit3d.pretraining.sample_random_masks` with their other arguments set.
        patch_size: the network's, in voxels.
        seed: the run's seed.
        rank: of this process.
        world: number of processes; each has batches of the same size.
        key: of the volumes in a batch.

    Raises:
        UsageError: a negative seed, or a rank that is not one of ``world``.
        ValueError: ``patch_size`` is not one or three positive integers.
    """

    def __init__(
        self,
        masks: Callable[..., Masks],
        patch_size: int | Sequence[int],
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        key: str = "image",
    ) -> None:
        if seed < 0 or not 0 <= rank < world:
            raise UsageError(
                f"seed={seed}, rank={rank}, world={world}; expected a seed of 0 or more and a rank of 0 to world - 1."
            )
        self.masks, self.patch_size, self.key = masks, to_3tuple(patch_size, "patch_size"), key
        self.seed, self.rank, self.world = seed, rank, world
        self.engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer whose batches these are."""
        self.engine = engine

    def __call__(
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, tuple[Masks], dict[str, Any]]:
        """Return volumes ``(B, C, H, W, D)`` on the device, no target, and the masks, on the CPU.

        Raises:
            UsageError: not attached; or the batch has no volumes of whole patches.
        """
        if self.engine is None:
            raise UsageError(
                "PrepareBatchMasked: not attached to a trainer, whose iteration masks need. "
                "Put it into train_handlers, too."
            )
        image = image_of(batchdata, self.key)
        masks = self.draw(self.engine.state.iteration, len(image), self._grid(image))
        return image.to(device=device, non_blocking=non_blocking, **kwargs), None, (masks,), {}

    def draw(self, iteration: int, batch: int, grid: Sequence[int]) -> Masks:
        """Draw this process's masks.

        Args:
            iteration: the trainer's, counted from 1 over the whole run.
            batch: volumes of this process.
            grid: patches along ``(H, W, D)``.
        """
        # one stream per seed and iteration; SeedSequence keeps near numbers apart
        state = np.random.SeedSequence([self.seed, iteration]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        masks = self.masks(batch * self.world, grid, generator=generator)
        return type(masks)(*(rows[self.rank :: self.world] for rows in masks))

    def _grid(self, image: Tensor) -> GridShape:
        size = tuple(image.shape[2:])
        if any(n % p for n, p in zip(size, self.patch_size)):
            raise UsageError(
                f"batch[{self.key!r}]: volumes of {size} voxels, patch_size={self.patch_size}; expected whole "
                "patches. Crop or pad the volumes to a multiple of the patch."
            )
        h, w, d = (n // p for n, p in zip(size, self.patch_size))
        return h, w, d


class StepSchedule:
    """Set learning rate, weight decay and the target encoder's momentum at each optimizer step of a MONAI trainer.

    Each is ``schedule(step, total)``, such as :func:`~monai_vit3d.pretraining.learning_rate_at` with its other
    arguments set. Steps are the optimizer's, from 0, over the whole run: ``ceil(epoch_length / accumulation_steps)``
    an epoch, the last of which may be of fewer batches. They are computed from the trainer's iteration, so there is
    no state to save and a resumed run continues exactly. The values of the step are in the trainer's metrics
    (``learning_rate``, ``weight_decay``, ``momentum``), where StatsHandler and TensorBoardStatsHandler find them.

    Args:
        optimizer: the trainer's. If a parameter group has ``lr_scale``, it multiplies the group's learning rate.
        learning_rate: schedule of the learning rate.
        weight_decay: schedule of the weight decay, for the groups whose weight decay is not 0 now; None leaves all
            as they are.
        model: has ``update_target(momentum)``, as :class:`~monai_vit3d.pretraining.IJEPA` has, wrapped or not. None
            if there is no target encoder.
        momentum: schedule of the momentum with which ``model`` is updated after each optimizer step.
        accumulation_steps: the trainer's.
        epochs: of the schedules, if the trainer is run for fewer at a time, as in the rounds of a federated training;
            None uses the trainer's.

    Raises:
        UsageError: a model without momentum or momentum without a model, a model without ``update_target``, or
            ``accumulation_steps`` below 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        learning_rate: Schedule,
        weight_decay: Schedule | None = None,
        model: nn.Module | None = None,
        momentum: Schedule | None = None,
        accumulation_steps: int = 1,
        epochs: int | None = None,
    ) -> None:
        self.epochs = epochs
        self.model = unwrap_network(model)
        if (model is None) != (momentum is None) or (model is not None and not hasattr(self.model, "update_target")):
            name = None if model is None else type(self.model).__name__
            raise UsageError(
                f"model={name}, momentum={momentum}; expected a model with update_target, such as IJEPA, and a "
                "schedule of its momentum, or neither."
            )
        if accumulation_steps < 1:
            raise UsageError(f"accumulation_steps={accumulation_steps}; expected 1 or more batches a step.")
        schedules = {"learning_rate": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
        self.schedules = {name: schedule for name, schedule in schedules.items() if schedule is not None}
        self.optimizer, self.accumulation_steps = optimizer, accumulation_steps
        # decided now: a schedule may reach 0, and the groups of a resumed run hold scheduled values
        self.decayed = {i for i, group in enumerate(optimizer.param_groups) if group.get("weight_decay", 0) != 0}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(Events.ITERATION_STARTED, self.before_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.after_step)

    def check(self, engine: Engine) -> None:
        """Refuse a trainer whose optimizer steps cannot be counted.

        Raises:
            UsageError: its length is unknown, or it accumulates another number of batches.
        """
        if engine.state.epoch_length is None or engine.state.max_epochs is None:
            raise UsageError(
                f"trainer of max_epochs={engine.state.max_epochs}, epoch_length={engine.state.epoch_length}; schedules "
                "need both. Give the trainer epoch_length where its loader has no length."
            )
        of_trainer = getattr(engine, "accumulation_steps", 1)
        if of_trainer != self.accumulation_steps:
            raise UsageError(
                f"StepSchedule: accumulation_steps={self.accumulation_steps}, the trainer has {of_trainer}; expected "
                "the same number. Set both from one entry."
            )

    def before_step(self, engine: Engine) -> None:
        """Set the values of the step that this iteration's batch is part of."""
        step, total, _ = self._position(engine)
        values = {name: schedule(step, total) for name, schedule in self.schedules.items()}
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = values["learning_rate"] * group.get("lr_scale", 1.0)
            if index in self.decayed and "weight_decay" in values:
                group["weight_decay"] = values["weight_decay"]
        engine.state.metrics.update(values)

    def after_step(self, engine: Engine) -> None:
        """Update the target encoder, if this iteration ended with an optimizer step."""
        if self.model is not None and self._position(engine)[2]:
            self.model.update_target(engine.state.metrics["momentum"])

    def _position(self, engine: Engine) -> tuple[int, int, bool]:
        """Count optimizer steps before this iteration's and in the whole run, and say whether this iteration steps."""
        state: Any = engine.state  # check() has refused a trainer of unknown length
        length, every = state.epoch_length, self.accumulation_steps
        epoch, batch = divmod(state.iteration - 1, length)
        steps_per_epoch = ceil(length / every)
        is_step = (batch + 1) % every == 0 or batch + 1 == length
        total = (self.epochs or state.max_epochs) * steps_per_epoch
        return min(epoch * steps_per_epoch + batch // every, total - 1), total, is_step
