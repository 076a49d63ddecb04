"""A backbone's constructor arguments in JSON's types: read off its layers, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from timm.layers import Attention, AttentionRope, DiffAttention, get_act_layer, get_norm_layer
from timm.models import vision_transformer as timm_vit
from torch import nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers import EMBED_LAYERS, HeadGatedAttention, RotaryBlock, RotaryPositions3D

from .layer_facts import block_facts, is_layer, layer_details, norm_details, parts_of
from .options import MLPS

if TYPE_CHECKING:
    from .vit3d import VisionTransformer3D

# arguments that are numbers, flags or words
_PLAIN = (
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "class_token"),
    *("reg_tokens", "no_embed_class", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size", "dynamic_img_pad"),
    *("pos_embed", "init_values", "pool_include_prefix", "tokens"),
)
_BLOCKS = ("Block", "ResPostBlock", "ParallelScalingBlock", "DiffParallelScalingBlock", "ParallelThingsBlock")
_ACTS = (
    *("silu", "mish", "relu", "relu6", "leaky_relu", "elu", "prelu", "celu", "selu", "gelu_tanh", "quick_gelu"),
    *("sigmoid", "tanh", "hard_sigmoid", "hard_swish", "hard_mish", "identity"),
)
_NORMS = ("rmsnorm", "simplenorm", "layernormfp32", "rmsnormfp32", "simplenormfp32")
_HOMES = ("torch", "timm", __name__.partition(".")[0])


def _table(*layers: type[nn.Module]) -> dict[str, type[nn.Module]]:
    return {layer.__name__: layer for layer in layers}


# layers that have a name: argument -> name -> class; timm's LayerNorm and GELU compute what torch's do
LAYERS: dict[str, dict[str, type[nn.Module]]] = {
    "embed_layer": _table(*EMBED_LAYERS.values()),
    "block_fn": _table(*(getattr(timm_vit, name) for name in _BLOCKS), RotaryBlock),
    "attn_layer": _table(Attention, AttentionRope, DiffAttention, HeadGatedAttention),
    "mlp_layer": _table(*MLPS.values()),
    "act_layer": _table(*map(get_act_layer, _ACTS), nn.GELU),
    "norm_layer": _table(*map(get_norm_layer, _NORMS), nn.RMSNorm, nn.LayerNorm),
}


def describe_backbone(backbone: VisionTransformer3D) -> dict[str, Any]:
    """Return the arguments of a backbone, for :func:`model_args`."""
    block, embed = backbone.blocks[0], backbone.patch_embed
    norm = backbone.norm_layer(int(backbone.embed_dim), device="meta")
    layers: dict[str, Any] = {
        "embed_layer": embed,
        "block_fn": block,
        "act_layer": backbone.act_layer(),
        "norm_layer": norm,
    }
    layers |= {"attn_layer": parts_of(block).get("attn"), "mlp_layer": parts_of(block).get("mlp")}
    foreign = {key: layer for key, layer in layers.items() if layer is not None and not _has_name(key, layer)}
    embed_norm: Any = getattr(embed, "norm", None) if "embed_layer" not in foreign else None
    if is_layer(embed_norm) and not _has_name("norm_layer", embed_norm):
        foreign["embed_layer"] = embed_norm
    if backbone.rope is not None and type(backbone.rope) is not RotaryPositions3D:
        foreign["rope"] = backbone.rope
    return {
        "img_size": list(backbone.img_size),
        "patch_size": list(backbone.patch_size),
        "grid_size": list(backbone.grid_size),
        **_numbers(backbone),
        **_tokens(backbone),
        **block_facts(block),
        "rope": _rope(backbone.rope),
        **{key: type(layer).__name__ for key, layer in layers.items()},
        "norm_eps": getattr(norm, "eps", None),
        "block_options": layer_details("block_fn", block),
        "mlp_options": layer_details("mlp_layer", layers["mlp_layer"]),
        "act_options": layer_details("act_layer", layers["act_layer"]),
        "norm_options": norm_details(norm),
        "embed_norm": _embed_norm(embed_norm),
        **_embed_options(embed),
        "foreign": {key: class_path(layer) for key, layer in foreign.items()},
    }


def built_backbone(args: Mapping[str, Any], factory: Callable[..., nn.Module], overrides: dict[str, Any]) -> Any:
    """Build the backbone that :func:`describe_backbone` describes; arguments as for ``build_network``."""
    network = factory(**{**_plain_options(args), **_layer_options(args, overrides), **overrides})
    if isinstance(network.pos_embed, nn.Parameter) and not args.get("pos_trained", True):
        network.pos_embed.requires_grad_(False)
    return network


def class_path(layer: nn.Module) -> str:
    """Return the dotted name of a layer's class."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def missing_classes(names: Mapping[str, Any]) -> str:
    """Return the message on arguments whose classes must be passed."""
    listed = "; ".join(f"{key}: {name!r}" for key, name in names.items())
    keywords = ", ".join(f"{key}=..." for key in names)
    return f"layers that are known neither to torch, timm nor this package: {listed}. Pass the classes: {keywords}"


def _numbers(backbone: VisionTransformer3D) -> dict[str, Any]:
    return {
        "in_chans": int(backbone.in_chans),
        "num_classes": int(backbone.num_classes),
        "embed_dim": int(backbone.embed_dim),
        "depth": len(backbone.blocks),
        "num_heads": int(backbone.num_heads),
        "mlp_ratio": float(backbone.mlp_ratio),
        "dynamic_img_size": backbone.dynamic_img_size,
        "dynamic_img_pad": backbone.dynamic_img_pad,
        **({} if backbone.tokens == "all" else {"tokens": backbone.tokens}),
    }


def _tokens(backbone: VisionTransformer3D) -> dict[str, Any]:
    """Describe prefix tokens, positions, pooling, and where the norms around the blocks are."""
    positions, after = backbone.pos_embed, is_layer(backbone.fc_norm)
    own = positions is not None and positions.shape[1] > backbone.num_patches
    return {
        "class_token": backbone.has_class_token,
        "reg_tokens": backbone.num_reg_tokens,
        "no_embed_class": backbone.num_prefix_tokens > 0 and not own,
        "pos_embed": backbone.pos_embed_type,
        "pos_trained": _are_trained(backbone),
        "global_pool": backbone.global_pool,
        "pool_include_prefix": backbone.pool_include_prefix,
        "pre_norm": is_layer(backbone.norm_pre),
        # what was pruned is gone, whatever the constructor's argument was
        "final_norm": backbone.final_norm and (after or is_layer(backbone.norm)),
        "fc_norm": None if backbone.fc_norm_arg is None else after,
    }


def _are_trained(backbone: VisionTransformer3D) -> bool:
    """Return False for positions that alone are frozen; in a network frozen as a whole none count as such."""
    positions, embed = backbone.pos_embed, backbone.patch_embed
    trained = any(parameter.requires_grad for parameter in embed.parameters())
    return not isinstance(positions, nn.Parameter) or positions.requires_grad or not trained


def _rope(rope: nn.Module | None) -> dict[str, Any] | None:
    if type(rope) is not RotaryPositions3D:
        return None
    rope_args = {"unit": rope.unit, "pairs": list(rope.pairs), "temperature": rope.temperature}
    rope_args["rotate_half"] = rope.rotate_half
    if rope.reference is not None or rope.offset:
        rope_args |= {"reference": rope.reference and list(rope.reference), "offset": rope.offset}
    if rope.ladder is not None:
        rope_args["ladder"] = list(rope.ladder)
    if rope.repeated or rope.axis_order != (0, 1, 2):
        rope_args |= {"repeated": rope.repeated, "axis_order": list(rope.axis_order)}
    return rope_args | ({"unit_mm": rope.unit_mm} if rope.unit == "mm" else {})


def _embed_norm(norm: nn.Module | None) -> dict[str, Any] | None:
    """Describe the norm of a patch embedding with the keys of the other norms."""
    if not is_layer(norm):
        return None
    eps = getattr(norm, "eps", None)
    return {"norm_layer": type(norm).__name__, "norm_eps": eps, "norm_options": norm_details(norm)}


def _embed_options(embed: nn.Module) -> dict[str, Any]:
    """Describe a residual stem's channels, where they are not those of its class."""
    details = layer_details("embed_layer", embed)
    return {"embed_options": {key: list(value) for key, value in details.items()}} if details else {}


def _has_name(argument: str, layer: nn.Module | None) -> bool:
    cls = type(layer)
    return cls.__name__ in LAYERS[argument] and cls.__module__.partition(".")[0] in _HOMES


def _plain_options(args: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: args[key] for key in _PLAIN if key in args}
    rope = args.get("rope")
    return options if rope is None else {**options, "rope": partial(RotaryPositions3D, **rope)}


def _layer_options(args: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructors that recorded names stand for."""
    absent = ("NoneType", None)  # a block that has no such layer
    names = {key: args[key] for key in LAYERS if key not in overrides and args.get(key) not in absent}
    foreign = dict(args.get("foreign") or {})
    unknown = {key: foreign.get(key, name) for key, name in names.items() if key in foreign or name not in LAYERS[key]}
    unknown |= {key: name for key, name in foreign.items() if key not in LAYERS and key not in overrides}
    if unknown:
        raise WeightsError(missing_classes(unknown))
    options: dict[str, Any] = {key: LAYERS[key][name] for key, name in names.items()}
    for key in ("embed_layer", "block_fn", "mlp_layer", "act_layer"):
        layer_args = args.get(key.split("_")[0] + "_options")
        if layer_args and key in options:
            options[key] = partial(options[key], **layer_args)
    if "norm_layer" not in overrides and (args.get("norm_eps") is not None or args.get("norm_options")):
        options["norm_layer"] = _norm(args)
    if args.get("embed_norm") and "embed_layer" in options:
        options["embed_layer"] = partial(options["embed_layer"], norm_layer=_norm(args["embed_norm"]))
    return options


def _norm(args: Mapping[str, Any]) -> Any:
    layer = LAYERS["norm_layer"][args.get("norm_layer", "LayerNorm")]
    layer_args = dict(args.get("norm_options") or {})
    if "elementwise_affine" in layer_args and layer.__module__.startswith("timm."):
        layer_args["affine"] = layer_args.pop("elementwise_affine")
    return (
        partial(layer, **layer_args)
        if args.get("norm_eps") is None
        else partial(layer, eps=args["norm_eps"], **layer_args)
    )
