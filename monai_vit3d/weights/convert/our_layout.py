"""Read keywords of VisionTransformer3D off tensors under its keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers import GluMlp
from torch import Tensor, nn

from monai_vit3d.data.errors import WeightsError

from .shapes import KERNEL, POS, even_side, mlp_ratio


def shown_options(state: Mapping[str, Tensor], family: str) -> dict[str, Any]:
    """Return keywords of VisionTransformer3D, as far as shapes and keys show them.

    Args:
        state: under our keys.
        family: what it is, for the message.

    Returns:
        The keywords; ``patch_size`` only of a kernel in 3D, ``num_heads`` only where a norm of the queries or a gate
        shows it; neither ``img_size`` nor ``pos_embed``.

    Raises:
        WeightsError: no whole block, or no patch kernel.
    """
    needed = (KERNEL, "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.0.norm1.weight")
    absent = [key for key in needed if key not in state]
    if absent or not any(f"blocks.0.mlp.{name}.weight" in state for name in ("fc1", "fc1_g")):
        raise WeightsError(f"the layout of {family}, but not all of a network: {(absent or ['blocks.0.mlp'])[0]}.")
    width, kernel = len(state["blocks.0.attn.proj.weight"]), state[KERNEL]
    options: dict[str, Any] = {
        "in_chans": kernel.shape[1],
        "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "scale_attn_norm": "blocks.0.attn.norm.weight" in state,
        "scale_mlp_norm": "blocks.0.mlp.norm.weight" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        "class_token": "cls_token" in state,
        "reg_tokens": int(state["reg_token"].shape[1]) if "reg_token" in state else 0,
        "pre_norm": "norm_pre.weight" in state,
        "final_norm": "norm.weight" in state or "fc_norm.weight" in state,
        "fc_norm": "fc_norm.weight" in state,
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        **_mlp(state, width),
        **({"patch_size": tuple(kernel.shape[2:])} if kernel.dim() == 5 else {}),
        **({"init_values": 1.0} if "blocks.0.ls1.gamma" in state else {}),  # the gammas come with the weights
    }
    if "blocks.0.attn.q_norm.weight" in state:
        options["num_heads"] = width // len(state["blocks.0.attn.q_norm.weight"])
    if "blocks.0.attn.gate.weight" in state:
        options |= {"num_heads": len(state["blocks.0.attn.gate.weight"]), "attn_layer": "head_gated"}
    return {**options, "global_pool": _pool(options)}


def eps(value: float) -> dict[str, Any]:
    """Return the keyword for layer norms with this ``eps``."""
    return {"norm_layer": partial(nn.LayerNorm, eps=value)}


def learned_positions(
    state: Mapping[str, Tensor], options: Mapping[str, Any], prefix: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the keywords on positions, and which of them are assumed: a grid of as many patches, if one is a cube.

    Args:
        state: under our keys.
        options: what :func:`shown_options` returned.
        prefix: how many of the positions belong to prefix tokens.
    """
    if POS not in state:
        return {"pos_embed": "none"}, ()
    positions = {"pos_embed": "learned", "no_embed_class": prefix == 0}
    side = even_side(state[POS].shape[1] - prefix)
    if not side or "patch_size" not in options:
        return positions, ()
    return {**positions, "img_size": tuple(side * p for p in options["patch_size"])}, ("img_size",)


def _mlp(state: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    if "blocks.0.mlp.fc1_g.weight" in state:
        hidden = len(state["blocks.0.mlp.fc1_g.weight"])
        return {"mlp_layer": "swiglu", "act_layer": "silu", "mlp_ratio": mlp_ratio(width, hidden)}
    hidden, inner = len(state["blocks.0.mlp.fc1.weight"]), state["blocks.0.mlp.fc2.weight"].shape[1]
    ratio = {"mlp_ratio": mlp_ratio(width, hidden)}
    if hidden == 2 * inner:  # DINOv2's: the first half through the activation, times the second
        return {**ratio, "mlp_layer": partial(GluMlp, gate_last=False), "act_layer": "silu"}
    return ratio


def _pool(options: Mapping[str, Any]) -> str:
    if options["class_token"] and not options["fc_norm"]:
        return "cls_token"
    return "avg" if options["fc_norm"] or options["num_classes"] else ""
