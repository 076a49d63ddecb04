"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) in the blocks of a network, by Hugging Face's peft."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, install_extra

from .wrappers import plain_state_dict, unwrap_network

ADAPTER = "default"  # peft's name for the one adapter of a network
TRAINED = ("head", "decoder")
_MARKS = ("peft_config", "lora")
NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass(frozen=True)
class LoraSettings:
    """The settings of :func:`apply_lora`; the network has them as its attribute ``lora``.

    Attributes:
        rank: of the adapters.
        alpha: the adapters' product is scaled by ``alpha / rank``.
        targets: names of the layers that have adapters.
        dropout: of the adapters' input, in training.
        trained: parts that are trained as they are.

    Raises:
        UsageError: a number out of its range.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float
    trained: tuple[str, ...]

    def __post_init__(self) -> None:
        rank, alpha, dropout = self.rank, self.alpha, self.dropout
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise UsageError(f"rank={rank!r}; expected a whole number from 1, as 4 or 16.")
        if not all(isinstance(value, (int, float)) for value in (alpha, dropout)) or not (
            0 < alpha < math.inf and 0 <= dropout < 1
        ):
            raise UsageError(
                f"alpha={alpha!r}, dropout={dropout!r}; expected a positive number, and one from 0 up to 1."
            )


def apply_lora(
    network: nn.Module,
    rank: int,
    targets: str | Sequence[str] = ("qkv", "proj"),
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    trained: str | Sequence[str] | None = None,
) -> nn.Module:
    """Freeze a network and give linear layers of its blocks trainable adapters: ``W x + (alpha / rank) B A x``.

    B starts at zero, so the output does not change at first. Load weights before, make the optimizer and
    DistributedDataParallel afterwards. :func:`merge_lora` gives back a plain network.

    Args:
        network: a network with timm's ``blocks``, or one with such a backbone. It is changed in place.
        rank: rows of A ``(rank, in_features)`` and columns of B ``(out_features, rank)``.
        targets: the last part of the names of linear layers inside blocks: of timm's Block ``"qkv"`` (queries, keys
            and values as one layer), ``"proj"``, ``"fc1"``, ``"fc2"``. Layers elsewhere, as the patch
            embedding's ``proj``, get none.
        alpha: scale of the adapters; None takes ``rank``, a factor of 1.
        dropout: of the adapters' input, 0 to 1; parts that stay in evaluation mode have none.
        trained: dotted names of modules or parameters that are trained besides the adapters, as
            ``("head", "backbone.norm")``; () for none. None takes ``"head"`` and ``"decoder"`` where there are such.
            Layers in them get no adapters.

    Returns:
        ``network``.

    Raises:
        UsageError: a number out of its range, a name that the network does not have, a network that has adapters
            already or is wrapped, or peft is not installed. The network is unchanged then.

    Example:
        >>> net = TokenClassifier(VisionTransformer3D(64, 8), "linear", num_classes=3)
        >>> net = apply_lora(load_backbone(net, "encoder.safetensors"), rank=8)
        >>> torch.save(MergedState(net).state_dict(), "model.pt")
    """
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if trained is None:
        trained = [name for name, part in network.named_children() if name in TRAINED and [*part.parameters()]]
    trained = (trained,) if isinstance(trained, str) else tuple(trained)
    settings = LoraSettings(rank, rank if alpha is None else alpha, targets, dropout, trained)
    refuse_adapters(network)
    names = adapter_layers(network, targets, trained)
    parameters = [parameter for part in trained for parameter in _parameters(network, part, "trained")]
    _unmark(network)  # what merging a part alone left
    _inject(network, settings, list(names))
    for parameter in parameters:
        parameter.requires_grad_(True)
    marked: Any = network
    marked.lora = settings
    return network


def merge_lora(network: nn.Module) -> nn.Module:
    """Add the adapters to the weights: the network computes the same, without them.

    Equal up to the rounding of the weights' dtype. Names in the state dict are those before :func:`apply_lora`.
    Frozen weights stay frozen.

    Args:
        network: a network with adapters, wrapped or not. It is changed in place.

    Returns:
        The network.

    Raises:
        UsageError: it has no adapters.
    """
    network = unwrap_network(network)
    layers = _adapters(network)
    if not layers and not any(mark in vars(part) for part in network.modules() for mark in _MARKS):
        raise UsageError(f"{type(network).__name__} has no adapters to merge: call apply_lora first.")
    for name, layer in layers.items():
        layer.merge()
        network.set_submodule(name, layer.get_base_layer())
    _unmark(network)
    return network


class MergedState:
    """The weights of a network as :func:`merge_lora` would leave them, where a plain state dict is to be saved.

    The network itself keeps its adapters; one without adapters gives its own state.

    Args:
        network: the network, or any wrapper that :func:`~monai_vit3d.networks.wrappers.unwrap_network` knows around it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = unwrap_network(network)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the merged weights, as they are now, under the names that they have without wrappers."""
        return plain_state_dict(merged_lora(self.network))


def merged_lora(network: NetworkT) -> NetworkT:
    """Return a network without adapters: itself if it has none, else a copy in which they are merged.

    Args:
        network: the network, or a part of one.
    """
    return merge_lora(copy.deepcopy(network)) if _adapters(network) else network  # type: ignore[return-value]


def freeze(network: nn.Module, parts: str | Sequence[str]) -> nn.Module:
    """Take parts of a network out of training; everything else stays as it is.

    Only gradients stop: dropout and batch norm follow ``train()`` and ``eval()`` as before.
    :func:`layer_decay_groups` leaves frozen parameters out.

    Args:
        network: any network.
        parts: dotted names of modules or parameters, as ``("backbone.patch_embed", "backbone.blocks.0")``.

    Returns:
        ``network``.

    Raises:
        UsageError: a name that the network does not have. Nothing is frozen then.
    """
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    for parameter in [parameter for part in parts for parameter in _parameters(unwrap_network(network), part, "parts")]:
        parameter.requires_grad_(False)
    return network


def adapter_layers(network: nn.Module, targets: Sequence[str], trained: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """Return the linear layers inside blocks that ``targets`` name, by their full names.

    Args:
        network: as :func:`apply_lora` takes it.
        targets: as :func:`apply_lora` takes them.
        trained: parts whose layers are left out.

    Raises:
        UsageError: no targets, or one that no block has.
    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and _in_block(name) and not any(_within(name, part) for part in trained)
    }
    names = sorted({name.rpartition(".")[2] for name in layers})
    if not targets or not set(targets) <= set(names):
        but = f" besides {', '.join(trained)}" if trained else ""
        raise UsageError(
            f"targets={tuple(targets)}; expected one or more of the linear layers in the blocks of "
            f"{type(network).__name__}; it has {', '.join(map(repr, names)) or 'none'}{but}."
        )
    return {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in targets}


def refuse_adapters(network: nn.Module) -> None:
    """Refuse a network that cannot be given adapters.

    Raises:
        UsageError: it, or a part of it, has adapters already, or it is wrapped.
    """
    if unwrap_network(network) is not network:
        raise UsageError(
            f"network is in a {type(network).__name__}, which knows only the parameters that it began with: call "
            "apply_lora on the network first, then wrap it."
        )
    if _adapters(network):
        raise UsageError(f"{type(network).__name__} has adapters already: call merge_lora first.")


def _in_block(name: str) -> bool:
    """Return whether a dotted name goes through ``blocks.N``."""
    words = name.split(".")
    return any(word == "blocks" and after.isdecimal() for word, after in pairwise(words))


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _parameters(network: nn.Module, part: str, argument: str) -> list[nn.Parameter]:
    parameters = [parameter for name, parameter in network.named_parameters() if part and _within(name, part)]
    if not parameters:
        names = ", ".join(dict.fromkeys(name.partition(".")[0] for name, _ in network.named_parameters()))
        raise UsageError(
            f"{argument}={part!r}: {type(network).__name__} has no parameters of that name. Its parts are {names}; "
            "name one of them, or a part of one with its dots."
        )
    return parameters


def _adapters(network: nn.Module) -> dict[str, Any]:
    """Return the layers that have adapters, by name, in a whole network or a part of one."""
    return {name: layer for name, layer in network.named_modules() if hasattr(layer, "lora_A")}


def _unmark(network: nn.Module) -> None:
    """Remove the marks that a network, or a part of it, has adapters."""
    for part in network.modules():
        for mark in _MARKS:
            vars(part).pop(mark, None)


def _inject(network: nn.Module, settings: LoraSettings, names: list[str]) -> None:
    """Put peft's layers around the named ones; everything else is frozen."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError(
            f"LoRA needs the package peft, which is not installed here: {install_extra('peft')}."
        ) from error
    exactly = "|".join(map(re.escape, names))  # a list would be matched by the ends of names
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft multiplies by it
        lora_dropout=settings.dropout,
        target_modules=exactly,
    )
    inject_adapter_in_model(config, network, adapter_name=ADAPTER)
