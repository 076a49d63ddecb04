"""The licence of a network's weights: from where they were loaded into the files that are written of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

LICENCE_KEY = "license"  # timm's and the hub's key, in a file's header, too


def weights_licence(network: nn.Module) -> str | None:
    """Return the licence that the weights of a network, or of its backbone, came with; None if none is known."""
    config = getattr(getattr(network, "backbone", network), "pretrained_cfg", None) or {}
    return config.get(LICENCE_KEY)


def set_weights_licence(network: nn.Module, licence: str | None) -> None:
    """Keep a licence with a network, or its backbone; None leaves what it has."""
    holder: Any = getattr(network, "backbone", network)
    if licence is not None and isinstance(getattr(holder, "pretrained_cfg", None), dict):
        holder.pretrained_cfg = holder.default_cfg = {**holder.pretrained_cfg, LICENCE_KEY: licence}


def licence_metadata(network: nn.Module) -> Mapping[str, str]:
    """Return the entry of a file's header."""
    licence = weights_licence(network)
    return {} if licence is None else {LICENCE_KEY: licence}
