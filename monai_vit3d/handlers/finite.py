"""Stop a training at the first loss or weight that is NaN or infinite, and name the cases of its batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.utils import ImageMetaKey
from torch import nn

from monai_vit3d.data.errors import TrainingDiverged
from monai_vit3d.networks.wrappers import unwrap_network

NOT_FINITE_ADVICE = (
    "Look at these files for voxels that are far from all others; if they are sound, lower the learning rate or set "
    "amp to false, and run again: it resumes from the epoch before."
)


class FiniteCheck:
    """Raise an error at the first iteration whose loss or weights are not finite.

    The loss is checked before the optimizer's step, so that it never reaches the weights; the weights after it, as a
    finite loss may have gradients that are not. Each of several processes checks its own loss and all weights.

    Args:
        network: the network in training, wrapped or not.
        name_key: key of the names in a batch; without them the message has the file names of its MetaTensors.

    Raises:
        TrainingDiverged: in the iteration; the message has the files of the batch.
    """

    def __init__(self, network: nn.Module, name_key: str = "name") -> None:
        self.network, self.name_key = unwrap_network(network), name_key

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check_weights)

    def check_loss(self, engine: Engine) -> None:
        """Check the loss of the batch."""
        output: Any = engine.state.output
        loss = float(output["loss"].detach())
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"{position(engine)}: the loss is {loss}; the batch: {self._names(engine)}. {NOT_FINITE_ADVICE}"
            )

    def check_weights(self, engine: Engine) -> None:
        """Check the weights after the step."""
        require_finite_weights(self.network, engine, f"; the last batch: {self._names(engine)}")

    def _names(self, engine: Engine) -> str:
        names = case_names(engine.state.batch, self.name_key)
        return ", ".join(names) if names else f"no names (put them into the data's {self.name_key!r})"


def require_finite_weights(network: nn.Module, engine: Engine, batch: str = "") -> None:
    """Refuse a network with a weight that is NaN or infinite.

    Args:
        network: the network.
        engine: the trainer, for the message.
        batch: describes the batch, for the message.

    Raises:
        TrainingDiverged: the message names the first such weight.
    """
    weights = {name: value.detach() for name, value in network.named_parameters() if value.is_floating_point()}
    # one sum for all weights: a NaN or an infinity anywhere makes it NaN or infinite
    if (
        weights
        and not torch.stack([norm.float() for norm in torch._foreach_norm([*weights.values()])]).sum().isfinite()
    ):
        name = next((name for name, value in weights.items() if not value.isfinite().all()), None)
        if name is not None:
            raise TrainingDiverged(
                f"{position(engine)}: {name} has weights that are NaN or infinite{batch}. {NOT_FINITE_ADVICE}"
            )


def case_names(batch: Any, name_key: str = "name") -> list[str]:
    """List the names of a batch's cases, before or after MONAI has decollated it.

    Args:
        batch: a dictionary of collated values, or a list with a dictionary for each case.
        name_key: of the names; without them the first MetaTensor's files are listed.
    """
    if isinstance(batch, list):
        return [name for item in batch for name in case_names(item, name_key)]
    if not isinstance(batch, Mapping):
        return []
    files = [value.meta.get(ImageMetaKey.FILENAME_OR_OBJ) for value in batch.values() if isinstance(value, MetaTensor)]
    names: str | list[Any] = next((listed for listed in [batch.get(name_key), *files] if listed), [])
    return [str(name) for name in ([names] if isinstance(names, str) else names)]


def position(engine: Engine) -> str:
    """Format epoch and iteration, for messages."""
    return f"epoch {engine.state.epoch}, iteration {engine.state.iteration}"
