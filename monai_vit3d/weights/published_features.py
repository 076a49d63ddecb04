"""What published models make of their tokens: an attention pool beside the encoder, a network over all windows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.data.published_models import PublishedModel, published_model
from monai_vit3d.layers import ProjectedAttentionPool
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.checkpoints import read_with_metadata

from .fetch import fetch_weights, load_published

# COLIPRI's names beside image_encoder.backbone, and ours
_POOL = {
    "projector.weight": "projection.weight",
    "projector.bias": "projection.bias",
    "pooler.attn.in_proj_weight": "attn.in_proj_weight",
    "pooler.attn.in_proj_bias": "attn.in_proj_bias",
    "pooler.attn.out_proj.weight": "attn.out_proj.weight",
    "pooler.attn.out_proj.bias": "attn.out_proj.bias",
}
_OF_IMAGES = re.compile(r"(?:^|.*\.)image_encoder\.(?:module\.|_orig_mod\.)*((?:projector|pooler)\..+)$")


def load_pool(
    model: str | PublishedModel, path: str | Path | None = None, *, accept_licence: bool = False
) -> ProjectedAttentionPool:
    """Build the attention pool of a published model from the file of its encoder.

    Args:
        model: the name of an entry, or an entry.
        path: the file, where it lies already; None fetches it.
        accept_licence: as for :func:`fetch_weights`.

    Returns:
        The pool, in evaluation mode, of normed patch tokens.

    Raises:
        UsageError: a model without one, or as :func:`fetch_weights`.
        WeightsError: a file without the pool's tensors, or with others; or as :func:`fetch_weights`.
    """
    entry = published_model(model) if isinstance(model, str) else model
    if not entry.pool:
        raise UsageError(f"{entry.name}: its feature is no attention pool's; expected a model whose entry has one.")
    path = fetch_weights(entry, accept_licence=accept_licence) if path is None else Path(path)
    state = _pool_tensors(read_with_metadata(path)[0], str(path))
    out, width = state["projection.weight"].shape
    with torch.device("meta"):
        pool = ProjectedAttentionPool(width, out, **entry.pool)
    try:
        pool.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path}: its attention pool: {' '.join(str(error).split())}") from error
    return pool.float().eval().requires_grad_(False)


def load_combiner(
    model: str | PublishedModel, path: str | Path | None = None, *, accept_licence: bool = False
) -> VisionTransformer3D:
    """Build the network over a scan's windows of a published model: their vectors ``(B, F, H, W, D)`` in, tokens out.

    Args:
        model: the name of an entry, or an entry.
        path: its file, where it lies already; None fetches it.
        accept_licence: as for :func:`fetch_weights`.

    Returns:
        The network, in evaluation mode, for any grid of windows.

    Raises:
        UsageError: a model without one, or as :func:`fetch_weights`.
        WeightsError: as :func:`load_published`.
    """
    entry = published_model(model) if isinstance(model, str) else model
    if entry.combiner is None:
        raise UsageError(f"{entry.name}: no network over its windows; expected a model whose entry has a combiner.")
    return load_published(entry.combiner, path=path, accept_licence=accept_licence).network


def _pool_tensors(content: Any, name: str) -> dict[str, Tensor]:
    """Return the tensors of the one pool in a checkpoint, under our names."""
    found: dict[str, Tensor] = {}
    for key, value in _tensors(content, "").items():
        match = _OF_IMAGES.match(key)
        if match is None:
            continue
        if match[1] not in _POOL or _POOL[match[1]] in found:
            raise WeightsError(f"{name}: {key} is a second one, or none, of the tensors of COLIPRI's attention pool.")
        found[_POOL[match[1]]] = value
    missing = [theirs for theirs, ours in _POOL.items() if ours not in found]
    if missing:
        raise WeightsError(
            f"{name}: no image_encoder.{missing[0]}, which the attention pool has. Take another feature, as "
            "feature='mean', or the file that its authors publish."
        )
    found["projection.weight"] = found["projection.weight"].flatten(1)  # a convolution of one voxel
    return found


def _tensors(content: Any, start: str) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint, by their entries and names joined by dots."""
    found: dict[str, Tensor] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            found[f"{start}{key}"] = value
        else:
            found |= _tensors(value, f"{start}{key}.")
    return found
