"""Make epochs the same whether a run was interrupted or not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd


class EpochSeed:
    """Seed everything at the start of each epoch from ``seed`` and the epoch's number.

    Shuffling, augmentation and dropout of epoch n then depend on nothing that happened before it, so a run that
    resumes after epoch n - 1 continues as if it had never stopped.

    Args:
        seed: the run's seed.
        dataset: the training set; the random transforms in it are seeded.
        sampler: its ``set_epoch`` is called if it has one, as a ``DistributedSampler`` does; None if there is none.
        rank: of this process, so that several processes augment differently.
    """

    def __init__(self, seed: int, dataset: Any, sampler: Any = None, rank: int = 0) -> None:
        self.seed, self.dataset, self.sampler, self.rank = seed, dataset, sampler, rank

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed the epoch that starts."""
        # one stream per seed, epoch and rank; SeedSequence keeps near numbers apart
        state = np.random.SeedSequence([self.seed, engine.state.epoch, self.rank]).generate_state(1)
        seed = int(state[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        set_rnd(self.dataset, seed=seed)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(engine.state.epoch)
