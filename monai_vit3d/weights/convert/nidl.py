"""nidl's VisionTransformer3D (neurospin-deepinsight/nidl, 0.0.2): timm's layout in 3D, and what no tensor shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers.patch_embed import to_3tuple

from .our_layout import shown_options
from .shapes import POS, even_side


def nidl_options(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read keywords of VisionTransformer3D off shapes and keys; also return which of them were assumed.

    Args:
        state: a state dict in timm's layout with a 3D patch kernel.

    Returns:
        The keywords. ``num_heads`` is missing unless a norm of the queries shows it. ``img_size`` is of a cubic grid,
        and missing where there is none. ``pos_embed`` is missing where there are no
        learned positions. ``global_pool`` is the class token's if there is one.

    Raises:
        WeightsError: no block with timm's Mlp and Attention.
    """
    if "blocks.0.mlp.fc1.weight" not in state or "blocks.0.attn.qkv.weight" not in state:
        raise WeightsError(
            "timm's layout, but not timm's Block with its Attention and Mlp, of which nidl's network is made."
        )
    options = shown_options(state, "nidl")
    positions, guessed = _positions(state, options)
    return {**options, **positions}, ("global_pool", "norm_layer", "act_layer", "rope", *guessed)


def _positions(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    if POS not in state:
        return {}, ()
    count, prefix = state[POS].shape[1], int(options["class_token"]) + options["reg_tokens"]
    for without in (False, True):
        side = even_side(count if without else count - prefix)
        if side:
            size = tuple(side * p for p in options["patch_size"])
            return {"pos_embed": "learned", "no_embed_class": without, "img_size": size}, ("no_embed_class", "img_size")
    return {"pos_embed": "learned"}, ()


def place_prefix(count: int, prefix: int, img_size: int | Sequence[int], patch_size: Sequence[int]) -> dict[str, Any]:
    """Return whether prefix tokens have positions, as the input size tells it: ``no_embed_class``, if it tells.

    Args:
        count: positions that there are.
        prefix: prefix tokens.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch in voxels.
    """
    patches = prod(i // p for i, p in zip(to_3tuple(img_size, "img_size"), patch_size))
    counts = {patches + prefix: False, patches: prefix > 0}
    return {"no_embed_class": counts[count]} if count in counts else {}


def nidl_sincos(grid: tuple[int, int, int], embed_dim: int) -> Tensor:
    """Compute the fixed positions of nidl's ``pos_embed="sincos"``, which its files do not hold.

    Sines and cosines of the three axes, a sixth of the channels each (rounded up, the last ones cut off). As nidl
    has it, the table is built on a grid of ``(W, H, D)`` and read as one of ``(H, W, D)``: where H and W differ,
    the places are not those of the patches, and are kept so, because the weights were trained with them.

    Args:
        grid: patches along ``(H, W, D)``.
        embed_dim: channels.

    Returns:
        ``(1, H' * W' * D', embed_dim)`` float32, in the order of the tokens.
    """
    height, width, depth = grid
    channels = -(-embed_dim // 6)
    # float32, as there: so that the table is the same to the last bit
    rates = 1.0 / (10000.0 ** (torch.arange(channels, dtype=torch.float32) / channels))
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in (width, height, depth)))
    angles = places.reshape(-1, 3)[:, :, None] * rates  # (N, 3, channels)
    table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
    return table[None, :, :embed_dim]
