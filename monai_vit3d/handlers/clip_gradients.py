"""Bound the length of the gradient before each step of the optimizer."""

from __future__ import annotations

from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn


class ClipGradients:
    """Scale the gradient of all parameters together to at most ``max_norm`` (Pascanu et al. 2013, arXiv:1211.5063).

    For trainers without a gradient scaler (``amp: false`` of MONAI's trainer; :class:`AutocastInferer` needs none).

    Args:
        network: the network in training, wrapped or not.
        max_norm: the largest Euclidean norm; None clips nothing.

    Raises:
        ValueError: a norm that is not positive.
    """

    def __init__(self, network: nn.Module, max_norm: float | None) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}; expected a positive number, or None to clip nothing.")
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        if self.max_norm is not None:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip the gradient of the iteration."""
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
