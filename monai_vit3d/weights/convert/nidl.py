"""nidl's VisionTransformer3D (neurospin-deepinsight/nidl, 0.0.2): timm's layout in 3D, and what no tensor shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers.patch_embed import to_3tuple

from .shapes import KERNEL, POS, even_side, mlp_ratio


def nidl_options(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keywords of VisionTransformer3D, as far as shapes and keys show them, and which of them were assumed.

    Args:
        state: a state dict in timm's layout with a 3D patch kernel.

    Returns:
        The keywords. ``num_heads`` is missing unless a norm of the queries shows it. ``img_size`` is of a cubic grid,
        and missing where there is none. ``pos_embed`` is missing where there are no
        learned positions. ``global_pool`` is the class token's if there is one.

    Raises:
        WeightsError: no block with timm's Mlp and Attention.
    """
    if any(
        key not in state for key in ("blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight")
    ):
        raise WeightsError(
            "timm's layout, but not timm's Block with its Attention and Mlp, of which nidl's network is made."
        )
    kernel = state[KERNEL]
    hidden, width = state["blocks.0.mlp.fc1.weight"].shape
    prefixes = {"class_token": "cls_token" in state, "reg_tokens": _rows(state, "reg_token")}
    options: dict[str, Any] = {
        "in_chans": kernel.shape[1],
        "patch_size": tuple(kernel.shape[2:]),
        "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "mlp_ratio": mlp_ratio(width, hidden),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "scale_attn_norm": "blocks.0.attn.norm.weight" in state,
        "scale_mlp_norm": "blocks.0.mlp.norm.weight" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        **prefixes,
        "pre_norm": "norm_pre.weight" in state,
        "final_norm": "norm.weight" in state or "fc_norm.weight" in state,
        "fc_norm": "fc_norm.weight" in state,
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
    }
    if "blocks.0.ls1.gamma" in state:
        options["init_values"] = 1.0  # the gammas come with the weights
    options["global_pool"] = _pool(options)
    if "blocks.0.attn.q_norm.weight" in state:
        options["num_heads"] = width // len(state["blocks.0.attn.q_norm.weight"])
    positions, guessed = _positions(state, options)
    return {**options, **positions}, ("global_pool", "norm_layer", "act_layer", "rope", *guessed)


def _rows(state: Mapping[str, Tensor], key: str) -> int:
    return int(state[key].shape[1]) if key in state else 0


def _pool(options: Mapping[str, Any]) -> str:
    if options["class_token"] and not options["fc_norm"]:
        return "cls_token"
    return "avg" if options["fc_norm"] or options["num_classes"] else ""


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
    """Whether prefix tokens have positions, as the input size tells it: ``no_embed_class``, if it tells.

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
    """The fixed positions of nidl's ``pos_embed="sincos"``, which its files do not hold.

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
