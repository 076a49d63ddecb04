"""Keep a pretrained encoder as it is during the first epochs, until the new decoder gives it useful gradients."""

from __future__ import annotations

from ignite.engine import Engine, Events
from torch import nn

from monai_vit3d.networks.wrappers import unwrap_network


class FreezeEncoder:
    """Train all but the backbone for some epochs, and everything after them (Kumar et al. 2022, arXiv:2202.10054).

    Parameters that were frozen before, as under low-rank adapters, stay so. Build the optimizer before the first
    epoch: it holds all parameters from the start. ``DistributedDataParallel`` needs ``find_unused_parameters`` then.

    Args:
        network: a network with a ``backbone``, wrapped or not.
        epochs: how many; 0 freezes nothing.
    """

    def __init__(self, network: nn.Module, epochs: int) -> None:
        backbone: nn.Module = unwrap_network(network).backbone
        self.parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        self.epochs = epochs

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if self.epochs > 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Freeze or unfreeze for the epoch that starts."""
        train = engine.state.epoch > self.epochs
        for parameter in self.parameters:
            parameter.requires_grad_(train)
            if not train:
                parameter.grad = None  # an optimizer leaves parameters without gradient alone, weight decay too
