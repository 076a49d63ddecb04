"""The architecture of one of timm's 2D Vision Transformers, as options of VisionTransformer3D."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import DropPath, GluMlp, PatchEmbed
from timm.models import vision_transformer as timm_vit
from timm.models.eva import Eva
from torch import nn

from ...data.errors import WeightsError
from ...layers import PatchEmbed3D
from .timm_eva import LAYERS, eva_rope, eva_unhostable

# no weights, and no part of the architecture: a caller may want other rates
_REGULARISERS = (nn.Identity, nn.Dropout, DropPath)
_COMPARED = ("blocks.", "norm", "fc_norm", "attn_pool", "patch_embed.norm")
_NOT_FACTS = ("training", "init_values", "fused_attn", "attn_drop_p", "inplace")


def timm_options(model: nn.Module, axis: int = 2) -> dict[str, Any]:
    """The options with which VisionTransformer3D computes, in 3D, what a timm model computes.

    Args:
        model: timm's VisionTransformer or Eva; one on the meta device will do.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``, along which rotary angles do not turn.

    Returns:
        Keywords of :class:`VisionTransformer3D`, all but ``img_size`` and ``patch_size``.

    Raises:
        WeightsError: the model has something that VisionTransformer3D cannot host; the message says what.
    """
    why = _unhostable(model)
    if why:
        raise WeightsError(f"{type(model).__name__} cannot be hosted by VisionTransformer3D: {why}.")
    after, before = _is_layer(model.fc_norm), _is_layer(model.norm)
    pool, class_token = str(model.global_pool), model.cls_token is not None
    found = {
        "in_chans": int(model.patch_embed.proj.in_channels),
        "num_classes": int(model.num_classes),
        "global_pool": "cls_token" if pool == "token" else pool,
        "embed_dim": int(model.embed_dim),
        "depth": len(model.blocks),
        "class_token": class_token,
        "reg_tokens": int(model.num_prefix_tokens) - class_token,
        "no_embed_class": bool(model.no_embed_class),
        "pos_embed": "none" if model.pos_embed is None else "learned",
        "pre_norm": _is_layer(model.norm_pre),
        "final_norm": after or before,
        "fc_norm": after,
        # Eva's attentive pooling sees all tokens
        "pool_include_prefix": bool(getattr(model, "pool_include_prefix", model.attn_pool is not None)),
        **_block_options(model.blocks[0]),
    }
    if isinstance(model, Eva):
        found["rope"] = eva_rope(model, axis)
    if _is_layer(model.patch_embed.norm):
        norm = model.patch_embed.norm
        found["embed_layer"] = partial(PatchEmbed3D, norm_layer=partial(type(norm), eps=norm.eps))
    return found


def _unhostable(model: nn.Module) -> str:
    """What of a model has no keyword here; nothing if all of it has one."""
    kind = f"it is a {type(model).__module__}.{type(model).__name__}"
    if hasattr(model, "head_dist"):
        return f"{kind}: its logits are the mean of two heads, one on a distillation token, and there is no second head"
    if type(model) not in (timm_vit.VisionTransformer, Eva):
        return f"{kind}; timm's VisionTransformer and Eva alone are read"
    if type(model.patch_embed) is not PatchEmbed:
        return f"its patch embedding is a {type(model.patch_embed).__name__}, which no embed_layer makes in 3D"
    if isinstance(model, Eva):
        return eva_unhostable(model)
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
    qkv: Any = layers.get("qkv") or layers.get("q_proj") or layers["in_proj"]
    out: Any = layers.get("proj") or layers.get("out_proj") or layers["attn_out_proj"]
    hidden: Any = layers.get("fc1") or layers.get("fc1_g")
    norm: Any = next(module for module in block.modules() if hasattr(module, "eps"))
    scale = next((m.init_values for m in block.modules() if getattr(m, "init_values", None) is not None), None)
    width = int(qkv.in_features)
    found = {
        "num_heads": int(heads.num_heads),
        "mlp_ratio": _ratio(width, int(hidden.out_features if hidden else block.in_split[0])),
        "qkv_bias": qkv.bias is not None or getattr(attn, "q_bias", None) is not None,
        "qk_norm": _is_layer(heads.q_norm),
        "scale_attn_norm": attn is not None and _is_layer(attn.norm),
        "scale_mlp_norm": mlp is not None and _is_layer(mlp.norm),
        "proj_bias": out.bias is not None,
        "norm_layer": partial(type(norm), eps=norm.eps),
        "act_layer": _act(layers.get("act") or layers["mlp_act"]),
        "block_fn": _block_fn(block),
    }
    if attn is not None and mlp is not None:
        found |= {"attn_layer": LAYERS.get(type(attn), (type(attn),))[0], "mlp_layer": _mlp(mlp)}
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
    return LAYERS.get(type(block), (type(block),))[0]


def refuse_other_layers(model: nn.Module, network: nn.Module, axis: int = 2) -> None:
    """Compare layer by layer what no tensor's shape shows: kinds of layers, eps, heads, activations, rotary angles.

    Args:
        model: timm's.
        network: ours, built for its weights.
        axis: the slice axis, as for :func:`timm_options`.

    Raises:
        WeightsError: they differ; the message names the first layer that does.
    """
    ours, theirs = dict(network.named_modules()), dict(model.named_modules())
    shared = [name for name in ours if name in theirs and name.startswith(_COMPARED)]
    unlike = [(name, ours[name], theirs[name]) for name in shared if not _alike(ours[name], theirs[name])]
    if isinstance(model, Eva):
        rope = eva_rope(model, axis)
        wanted = None if rope is None else rope(int(model.embed_dim) // int(model.blocks[0].attn.num_heads))
        unlike += [("rope", network.rope, wanted)] if _facts(network.rope) != _facts(wanted) else []
    if unlike:
        name, have, need = unlike[0]
        raise WeightsError(
            f"{name} is {_facts(have)}, but the weights were made with {_facts(need)}; {len(unlike)} layers differ. "
            "Build without the options that change them, choose another global_pool if it is the pooling's, or pass "
            "strict=False."
        )


def _alike(ours: nn.Module, theirs: nn.Module) -> bool:
    if type(theirs) not in LAYERS:
        return _facts(ours) == _facts(theirs)
    return isinstance(ours, LAYERS[type(theirs)]) and _heads(ours) == _heads(theirs)


def _heads(module: nn.Module) -> Any:
    return getattr(module, "num_heads", None)


def _facts(module: nn.Module | None) -> tuple[str, dict[str, Any]]:
    if module is None or isinstance(module, _REGULARISERS):
        return "none", {}
    plain = {
        key: value
        for key, value in vars(module).items()
        if key[0] != "_" and key not in _NOT_FACTS and isinstance(value, (bool, int, float, str, tuple, list))
    }
    return type(module).__name__, plain
