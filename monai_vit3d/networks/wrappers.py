"""Evaluation mode for a while, and the network inside its wrappers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_HELD = ("_orig_mod", "_fsdp_wrapped_module")  # under which torch.compile and FSDP hold a network; neither is imported


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode; afterwards every module has the mode it had (MONAI's ``eval_mode`` restores one for all)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def unwrap_network(network: Any) -> Any:
    """Return the network inside DistributedDataParallel, DataParallel, FSDP and torch.compile, in any order of nesting.

    Args:
        network: a network, wrapped or not; anything else comes back as it is.
    """
    while (name := _held_name(network)) is not None:
        network = getattr(network, name)
    return network


def plain_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """Return a state dict under the names that the network has without wrappers around all of it or around parts.

    Args:
        network: any network; ``torch.compile(network.backbone)`` inside it is a wrapper, too.
    """
    network = unwrap_network(network)
    state: Any = network.state_dict()
    prefixes = _prefixes(network)
    if not prefixes:
        return state
    plain = OrderedDict((_plain_name(key, prefixes), value) for key, value in state.items())
    plain._metadata = {  # type: ignore[attr-defined]  # torch's own, with a network's arguments
        _plain_name(f"{key}.", prefixes).removesuffix("."): entry for key, entry in state._metadata.items()
    }
    return plain


def load_plain_state_dict(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`plain_state_dict` gives into a network, wrapped or not.

    Args:
        network: any network.
        state: tensors by plain names.

    Raises:
        RuntimeError: other names or shapes (of torch).
    """
    network = unwrap_network(network)
    prefixes = _prefixes(network)
    own = {_plain_name(key, prefixes): key for key in network.state_dict()}
    network.load_state_dict({own.get(key, key): value for key, value in state.items()})


def _held_name(network: Any) -> str | None:
    """Return the attribute under which a wrapper has its network; None for a network that is no wrapper."""
    if isinstance(network, (DistributedDataParallel, DataParallel)):
        return "module"
    children = getattr(network, "_modules", None) or {}
    return next((name for name in _HELD if name in children), None)


def _prefixes(network: nn.Module) -> list[tuple[str, str]]:
    """Return the prefixes that wrappers of parts put into names, innermost first, with the prefixes without them."""
    held = [(f"{name}." if name else "", _held_name(part)) for name, part in network.named_modules()]
    return [(f"{outer}{name}.", outer) for outer, name in reversed(held) if name is not None]


def _plain_name(key: str, prefixes: list[tuple[str, str]]) -> str:
    for wrapped, plain in prefixes:
        key = plain + key[len(wrapped) :] if key.startswith(wrapped) else key
    return key
