"""Keep an exponential moving average of a network's weights, by torch's AveragedModel."""

from __future__ import annotations

from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_vit3d.networks.weights_sha256 import weights_sha256
from monai_vit3d.networks.wrappers import unwrap_network


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

    The average starts anew if the network, when the trainer is run, holds other weights than at the end of the
    trainer's run before (in its first run: than when this handler was built), as a federated client's does, which its
    server has given other weights. Their SHA-256 is compared.

    Args:
        average: from :func:`moving_average`.
        network: the network in training, wrapped or not.
    """

    def __init__(self, average: AveragedModel, network: nn.Module) -> None:
        self.average = average
        self.network = unwrap_network(network)
        self.keep_digest()

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before the handler that restores a checkpoint."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.keep_digest)

    def keep_digest(self) -> None:
        """Keep the digest of the network's weights, for the next run."""
        self._digest = weights_sha256([self.network])

    def start(self, engine: Engine) -> None:
        """Restart the average if the network was given other weights."""
        if weights_sha256([self.network]) != self._digest:
            self.average.n_averaged.zero_()  # the next update copies

    def __call__(self, engine: Engine) -> None:
        """Add the weights of the iteration that ended."""
        self.average.update_parameters(self.network)
