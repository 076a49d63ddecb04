"""The architecture of one of timm's 2D Vision Transformers, as options of VisionTransformer3D."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import DropPath, GluMlp, PatchEmbed
from timm.models import vision_transformer as timm_vit
from torch import nn

from ...data.errors import WeightsError

# no weights, and no part of the architecture: a caller may want other rates
_REGULARISERS = (nn.Identity, nn.Dropout, DropPath)
_NOT_FACTS = ("training", "init_values", "fused_attn", "attn_drop_p", "inplace")


def timm_options(model: nn.Module) -> dict[str, Any]:
    """The options with which VisionTransformer3D computes, in 3D, what a timm model computes.

    Args:
        model: a ``timm.models.vision_transformer.VisionTransformer``; one on the meta device will do.

    Returns:
        Keywords of :class:`VisionTransformer3D`, all but ``img_size`` and ``patch_size``.

    Raises:
        WeightsError: the model has something that VisionTransformer3D cannot host; the message says what.
    """
    why = _unhostable(model)
    if why:
        raise WeightsError(f"{type(model).__name__} cannot be hosted by VisionTransformer3D: {why}.")
    after, before = _is_layer(model.fc_norm), _is_layer(model.norm)
    pool = str(model.global_pool)
    return {
        "in_chans": int(model.patch_embed.proj.in_channels),
        "num_classes": int(model.num_classes),
        "global_pool": "cls_token" if pool == "token" else pool,
        "embed_dim": int(model.embed_dim),
        "depth": len(model.blocks),
        "class_token": bool(model.has_class_token),
        "reg_tokens": int(model.num_reg_tokens),
        "no_embed_class": bool(model.no_embed_class),
        "pos_embed": "none" if model.pos_embed is None else "learned",
        "pre_norm": _is_layer(model.norm_pre),
        "final_norm": after or before,
        "fc_norm": after,
        "pool_include_prefix": bool(model.pool_include_prefix),
        **_block_options(model.blocks[0]),
    }


def _unhostable(model: nn.Module) -> str:
    """What of a model has no keyword here; nothing if all of it has one."""
    if type(model) is not timm_vit.VisionTransformer:
        return f"it is a {type(model).__module__}.{type(model).__name__}, timm's VisionTransformer alone is read"
    embed = model.patch_embed
    if type(embed) is not PatchEmbed:
        return f"its patch embedding is a {type(embed).__name__}, which no embed_layer makes in 3D"
    if _is_layer(embed.norm):
        return "its patches are normed before the positions (timm's embed_norm_layer), for which there is no keyword"
    if model.global_pool == "prr":
        return "global_pool='prr' is not among its poolings"
    return ""


def _is_layer(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


def _block_options(block: nn.Module) -> dict[str, Any]:
    """What a block was built with, read off its layers; all of timm's kinds of block are known."""
    layers = {name.rsplit(".", 1)[-1]: module for name, module in block.named_modules()}
    attn, mlp = layers.get("attn"), layers.get("mlp")  # blocks that do both at once have neither
    heads: Any = attn or block
    qkv: Any = layers.get("qkv") or layers["in_proj"]
    out: Any = layers.get("proj") or layers.get("out_proj") or layers["attn_out_proj"]
    hidden: Any = layers.get("fc1") or layers.get("fc1_g")
    norm: Any = next(module for module in block.modules() if hasattr(module, "eps"))
    scale = next((m.init_values for m in block.modules() if getattr(m, "init_values", None) is not None), None)
    width = int(qkv.in_features)
    found = {
        "num_heads": int(heads.num_heads),
        "mlp_ratio": _ratio(width, int(hidden.out_features if hidden else block.in_split[0])),
        "qkv_bias": qkv.bias is not None,
        "qk_norm": _is_layer(heads.q_norm),
        "scale_attn_norm": attn is not None and _is_layer(attn.norm),
        "scale_mlp_norm": mlp is not None and _is_layer(mlp.norm),
        "proj_bias": out.bias is not None,
        "norm_layer": partial(type(norm), eps=norm.eps),
        "act_layer": _act(layers.get("act") or layers["mlp_act"]),
        "block_fn": _block_fn(block),
    }
    if attn is not None and mlp is not None:
        found |= {"attn_layer": type(attn), "mlp_layer": _mlp(mlp)}
    return found if scale is None else {**found, "init_values": float(scale)}


def _ratio(width: int, hidden: int) -> float:
    """The MLP ratio r with ``int(width * r) == hidden``; the quotient itself may round below that."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _act(act: nn.Module) -> Callable[..., nn.Module]:
    return partial(nn.GELU, approximate=act.approximate) if type(act) is nn.GELU else type(act)


def _mlp(mlp: nn.Module) -> Callable[..., nn.Module]:
    return partial(GluMlp, gate_last=mlp.gate_last) if type(mlp) is GluMlp else type(mlp)


def _block_fn(block: nn.Module) -> Callable[..., nn.Module]:
    if isinstance(block, timm_vit.ParallelThingsBlock):
        return partial(type(block), num_parallel=block.num_parallel)
    if type(block) is timm_vit.ParallelScalingBlock:
        return partial(type(block), fuse_out_proj=block.out_proj is not None)
    return type(block)


def refuse_other_layers(model: nn.Module, network: nn.Module) -> None:
    """Compare layer by layer what no tensor's shape shows: kinds of layers, eps, heads, activations.

    Args:
        model: timm's.
        network: ours, built for its weights.

    Raises:
        WeightsError: they differ; the message names the first layer that does.
    """
    ours, theirs = dict(network.named_modules()), dict(model.named_modules())
    shared = [name for name in ours if name in theirs and name.startswith(("blocks.", "norm", "fc_norm", "attn_pool"))]
    unlike = [name for name in shared if _facts(ours[name]) != _facts(theirs[name])]
    if unlike:
        name = unlike[0]
        raise WeightsError(
            f"{name} is {_facts(ours[name])}, but the weights were made with {_facts(theirs[name])}; {len(unlike)} "
            "layers differ. Build without the options that change them, or pass strict=False."
        )


def _facts(module: nn.Module) -> tuple[str, dict[str, Any]]:
    if isinstance(module, _REGULARISERS):
        return "none", {}
    plain = {
        key: value
        for key, value in vars(module).items()
        if key[0] != "_" and key not in _NOT_FACTS and isinstance(value, (bool, int, float, str, tuple, list))
    }
    return type(module).__name__, plain
