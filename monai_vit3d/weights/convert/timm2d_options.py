"""The architecture of one of timm's 2D Vision Transformers, as options of VisionTransformer3D."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import PatchEmbed
from timm.models import vision_transformer as timm_vit
from timm.models.eva import Eva
from torch import nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers import PatchEmbed3D
from monai_vit3d.networks.layer_facts import block_facts, constructor, is_layer, layer_facts, parts_of

from .shapes import mlp_ratio
from .timm_eva import EVA_LAYERS, eva_rope, eva_unhostable

_COMPARED = ("blocks.", "norm", "fc_norm", "attn_pool", "patch_embed.norm")


def timm_options(model: nn.Module, axis: int = 2) -> dict[str, Any]:
    """Read off a timm model the options with which VisionTransformer3D computes the same in 3D.

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
    after, before = is_layer(model.fc_norm), is_layer(model.norm)
    pool, class_token = str(model.global_pool), model.cls_token is not None
    options = {
        "in_chans": int(model.patch_embed.proj.in_channels),
        "num_classes": int(model.num_classes),
        "global_pool": "cls_token" if pool == "token" else pool,
        "embed_dim": int(model.embed_dim),
        "depth": len(model.blocks),
        "class_token": class_token,
        "reg_tokens": int(model.num_prefix_tokens) - class_token,
        "no_embed_class": bool(model.no_embed_class),
        "pos_embed": "none" if model.pos_embed is None else "learned",
        "pre_norm": is_layer(model.norm_pre),
        "final_norm": after or before,
        "fc_norm": after,
        # Eva's attentive pooling sees all tokens
        "pool_include_prefix": bool(getattr(model, "pool_include_prefix", model.attn_pool is not None)),
        **_block_options(model.blocks[0]),
    }
    if isinstance(model, Eva):
        options["rope"] = eva_rope(model, axis)
    if is_layer(model.patch_embed.norm):
        norm = model.patch_embed.norm
        options["embed_layer"] = partial(PatchEmbed3D, norm_layer=partial(type(norm), eps=norm.eps))
    return options


def _unhostable(model: nn.Module) -> str:
    """List the parts of a model that have no keyword in VisionTransformer3D."""
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


def _block_options(block: nn.Module) -> dict[str, Any]:
    """Read a block's options off its layers; all of timm's kinds of block are known."""
    layers = parts_of(block)
    attn, mlp = layers.get("attn"), layers.get("mlp")  # blocks that do both at once have neither
    width = int((layers.get("qkv") or layers.get("q_proj") or layers["in_proj"]).in_features)
    hidden = layers.get("fc1") or layers.get("fc1_g")
    norm: Any = next(module for module in block.modules() if hasattr(module, "eps"))
    options = {
        **block_facts(block),
        "num_heads": int((attn or block).num_heads),
        "mlp_ratio": mlp_ratio(width, int(hidden.out_features if hidden else block.in_split[0])),
        "norm_layer": partial(type(norm), eps=norm.eps),
        "act_layer": constructor("act_layer", layers.get("act") or layers["mlp_act"]),
        "block_fn": EVA_LAYERS[type(block)][0] if type(block) in EVA_LAYERS else constructor("block_fn", block),
    }
    if attn is not None and mlp is not None:
        attention = EVA_LAYERS.get(type(attn), (type(attn),))[0]
        options |= {"attn_layer": attention, "mlp_layer": constructor("mlp_layer", mlp)}
    return options


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
        expected = None if rope is None else rope(int(model.embed_dim) // int(model.blocks[0].attn.num_heads))
        unlike += [("rope", network.rope, expected)] if layer_facts(network.rope) != layer_facts(expected) else []
    if unlike:
        name, have, need = unlike[0]
        raise WeightsError(
            f"{name} is {layer_facts(have)}, but the weights were made with {layer_facts(need)}; {len(unlike)} layers "
            "differ. Build without the options that change them, choose another global_pool if it is the pooling's, "
            "or pass strict=False."
        )


def _alike(ours: nn.Module, theirs: nn.Module) -> bool:
    if type(theirs) not in EVA_LAYERS:
        return layer_facts(ours) == layer_facts(theirs)
    return isinstance(ours, EVA_LAYERS[type(theirs)]) and _heads(ours) == _heads(theirs)


def _heads(module: nn.Module) -> Any:
    return getattr(module, "num_heads", None)
