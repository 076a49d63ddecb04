"""Small helpers around a whole network: its mode for a while, and what a wrapper holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in (MONAI's ``eval_mode`` knows one)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def unwrapped(network: Any) -> Any:
    """The network inside a DistributedDataParallel wrapper; anything else as it is."""
    return network.module if isinstance(network, DistributedDataParallel) else network
