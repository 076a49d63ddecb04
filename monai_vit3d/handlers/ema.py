"""Keep an exponential moving average of a network's weights, by torch's AveragedModel."""

from __future__ import annotations

from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_vit3d.networks.wrappers import unwrap_network

from .finite import parameter_versions


def moving_average(network: nn.Module, decay: float = 0.999) -> AveragedModel:
    """Copy ``network``; :class:`EMAHandler` keeps the copy at the moving average of its weights.

    Args:
        network: the network in training, wrapped or not.
        decay: share of the old average in the new one, 0 to 1; 0 copies the weights at each step.

    Raises:
        ValueError: a decay outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay}; expected a number from 0 to below 1.")
    return AveragedModel(unwrap_network(network), multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)


class EMAHandler:
    """Update a moving average after every iteration of a trainer.

    If the network is given other weights between two runs of the trainer, as a federated client is by its server, the
    average starts anew from those.

    Args:
        average: from :func:`moving_average`.
        network: the network in training, wrapped or not.
    """

    def __init__(self, average: AveragedModel, network: nn.Module) -> None:
        self.average = average
        self.network = unwrap_network(network)
        self._versions = parameter_versions([self.network])

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before the handler that restores a checkpoint."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Restart the average if the network was given other weights."""
        if parameter_versions([self.network]) != self._versions:
            self.average.n_averaged.zero_()  # the next update copies

    def __call__(self, engine: Engine) -> None:
        """Add the weights of the iteration that ended."""
        self.average.update_parameters(self.network)
        self._versions = parameter_versions([self.network])
