"""Exponential moving average of a network's weights, by torch's own AveragedModel."""

from __future__ import annotations

from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..networks.modes import unwrapped


def moving_average(network: nn.Module, decay: float = 0.999) -> AveragedModel:
    """A copy of ``network`` that :class:`EMAHandler` keeps at the moving average of its weights.

    Args:
        network: the network in training, or its DistributedDataParallel wrapper.
        decay: share of the old average in the new one, 0 to 1; 0 copies the weights at each step.

    Raises:
        ValueError: a decay outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay}; a number from 0 up to, but not, 1 is needed.")
    return AveragedModel(unwrapped(network), multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)


class EMAHandler:
    """Update a moving average after every iteration of a trainer.

    Args:
        average: what :func:`moving_average` returned.
        network: the network in training, or its DistributedDataParallel wrapper.
    """

    def __init__(self, average: AveragedModel, network: nn.Module) -> None:
        self.average = average
        self.network = unwrapped(network)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Take in the weights of the iteration that ended."""
        self.average.update_parameters(self.network)
