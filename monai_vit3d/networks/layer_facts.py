"""Read properties off layers: kinds, plain attributes, and the options that they were built with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

# what else such layers were built with: attribute, and the value that goes without saying
_DETAILS: dict[str, dict[str, Any]] = {
    "embed_layer": {"widths": None},
    "block_fn": {"num_parallel": None, "dual_lambda": False},
    "mlp_layer": {"gate_last": True},
    "act_layer": {"approximate": "none", "negative_slope": 0.01, "alpha": 1.0},
}
# not part of what a network computes in evaluation, or shown by its modules and tensors
_REGULARISERS = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
_NOT_FACTS = (
    *("training", "init_values", "fused_attn", "attn_drop_p", "inplace", "grad_checkpointing", "weight_init"),
    *("no_embed_class", "final_norm", "fc_norm_arg", "freeze"),
)


def is_layer(module: nn.Module | None) -> bool:
    """Return whether there is a layer that computes something."""
    return module is not None and not isinstance(module, nn.Identity)


def parts_of(block: nn.Module) -> dict[str, Any]:
    """Return a block's layers by the last part of their names."""
    return {name.rsplit(".", 1)[-1]: module for name, module in block.named_modules()}


def block_facts(block: nn.Module) -> dict[str, Any]:
    """Return the options of VisionTransformer3D that a block was built with, as far as its layers have timm's names.

    Args:
        block: ours, or one of timm's.
    """
    parts = parts_of(block)
    attn, mlp = parts.get("attn"), parts.get("mlp")
    qkv = parts.get("qkv") or parts.get("q_proj") or parts.get("in_proj")
    out = parts.get("proj") or parts.get("out_proj") or parts.get("attn_out_proj")
    starts = [start for m in block.modules() if (start := getattr(m, "init_values", None)) is not None]
    return {
        **({} if qkv is None else {"qkv_bias": any(m is not None for m in (qkv.bias, getattr(attn, "q_bias", None)))}),
        **({} if out is None else {"proj_bias": getattr(out, "bias", None) is not None}),
        "qk_norm": is_layer(getattr(attn or block, "q_norm", None)),
        "scale_attn_norm": is_layer(getattr(attn, "norm", None)),
        "scale_mlp_norm": is_layer(getattr(mlp, "norm", None)),
        "init_values": float(starts[0]) if starts else None,
    }


def layer_details(argument: str, layer: nn.Module | None) -> dict[str, Any]:
    """Return the options of a layer that differ from the defaults of its kind.

    Args:
        argument: ``"embed_layer"``, ``"block_fn"``, ``"mlp_layer"`` or ``"act_layer"``.
        layer: the layer, or None for none.
    """
    table = _DETAILS[argument].items()
    details = {key: getattr(layer, key) for key, default in table if getattr(layer, key, default) != default}
    if type(layer) is ParallelScalingBlock:
        details["fuse_out_proj"] = layer.out_proj is not None
    return details


def constructor(argument: str, layer: nn.Module) -> Callable[..., nn.Module]:
    """Return a constructor of such a layer.

    Args:
        argument: ``"block_fn"``, ``"mlp_layer"`` or ``"act_layer"``.
        layer: the layer.
    """
    details = layer_details(argument, layer)
    return partial(type(layer), **details) if details else type(layer)


def norm_details(norm: nn.Module | None) -> dict[str, Any]:
    """Return which parameters a norm lacks: all, or the bias."""
    if not getattr(norm, "elementwise_affine", True):
        return {"elementwise_affine": False}
    return {"bias": False} if isinstance(norm, nn.LayerNorm) and norm.bias is None else {}


def layer_facts(module: nn.Module | None) -> tuple[str, dict[str, Any]] | None:
    """Return a module's class and plain attributes but for defaults; None for what only regularises.

    Args:
        module: a layer, or None for none.
    """
    if module is None or isinstance(module, _REGULARISERS):
        return None
    defaults = {key: value for table in _DETAILS.values() for key, value in table.items()}
    plain = {
        key: value
        for key, value in vars(module).items()
        if key[0] != "_" and key not in _NOT_FACTS and isinstance(value, (bool, int, float, str, tuple, list))
        if key not in defaults or value != defaults[key]
    }
    return type(module).__name__, plain


def unlike_layers(one: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of modules and tensors in which two networks differ, other than in values, drop rates and types.

    The network itself goes by its class's name.

    Args:
        one: a network.
        other: another; either may be on the meta device.
    """
    sides = [{name: layer_facts(module) for name, module in net.named_modules()} for net in (one, other)]
    layers = [name or type(one).__name__ for name in (sides[0] | sides[1]) if sides[0].get(name) != sides[1].get(name)]
    shapes = [{key: tuple(value.shape) for key, value in net.state_dict().items()} for net in (one, other)]
    return layers + [key for key in (shapes[0] | shapes[1]) if shapes[0].get(key) != shapes[1].get(key)]
