"""From a trained network to one that answers with other classes: all weights but those of the last layer."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor, nn

from ..data.errors import WeightsError
from ..networks.wrappers import load_plain_state_dict, plain_state_dict, unwrap_network
from .backbone import PREFIX, load_backbone
from .files import as_state_dict, read_checkpoint, refuse_differences

logger = logging.getLogger(__name__)


def load_network(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a whole trained network into one of the same kind, whose number of classes may be another.

    The backbone comes as by :func:`load_backbone`, which adapts channels, patch and grid; all others must fit, but for
    layers whose outputs are the classes: where their number is another they stay as they were initialised, and the log
    names them.

    Args:
        network: a network with a ``backbone`` and a decoder or head, wrapped or not. It is changed in place.
        path: the state dict of such a network, by ``torch.save`` or as safetensors.

    Returns:
        ``network``.

    Raises:
        WeightsError: as :func:`load_backbone`; or the file has a backbone alone, or another decoder or head. The
            network is unchanged then.
        UsageError: a network without a backbone.
    """
    came = _beside_backbone(as_state_dict(read_checkpoint(path), path))
    own = _beside_backbone(plain_state_dict(network))
    name = type(unwrap_network(network)).__name__
    if not came:
        raise WeightsError(f"{path}: a backbone alone, the whole of a {name} is needed. Load it with load_backbone.")
    anew = _of_other_classes(own, came)
    came = {key: value for key, value in came.items() if key not in anew}
    refuse_differences({key: own[key] for key in own if key not in anew}, came, path, name)
    load_backbone(network, path)
    load_plain_state_dict(network, {**plain_state_dict(network), **came})
    logger.info("%s: loaded %d tensors of the rest; %s", path, len(came), _told(anew))
    return network


def _beside_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(PREFIX)}


def _of_other_classes(own: dict[str, Tensor], came: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """The tensors that differ in one axis alone (a transposed convolution's outputs are its second), and its lengths.

    They are of classes only if all differ from the same number to the same.
    """
    unlike = [key for key in own if key in came and own[key].shape != came[key].shape]
    counts = {key: [(a, b) for a, b in zip(came[key].shape, own[key].shape) if a != b] for key in unlike}
    ranks = all(own[key].dim() == came[key].dim() for key in unlike)
    if not ranks or len({tuple(pairs) for pairs in counts.values()}) != 1 or any(len(p) != 1 for p in counts.values()):
        return {}
    return {key: pairs[0] for key, pairs in counts.items()}


def _told(anew: dict[str, tuple[int, int]]) -> str:
    if not anew:
        return "nothing starts anew"
    had, has = next(iter(anew.values()))
    return f"{', '.join(anew)} start anew, with {has} outputs instead of {had}"
