"""transformers' ViTModel, Dinov2Model (with registers, too) and VideoMAEModel, in older and newer names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .dinov2_3d import dinov2_prefix, without_class_position
from .family import BackboneOptions, KeyLayout, Patch, State
from .key_table import Joined, KeyTable, apart
from .our_layout import eps, learned_positions, shown_options
from .shapes import POS
from .videomae import flat_sincos

_KERNEL = "embeddings.patch_embeddings.projection.weight"
TABLE = KeyTable(
    outside=(
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.register_tokens", "register_tokens"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("embeddings.mask_token", "mask_token"),
        ("layernorm.", "norm."),
    ),
    block="encoder.layer.",
    inside=(
        ("attention.attention.query.", "attn.q_proj."),
        ("attention.attention.key.", "attn.k_proj."),
        ("attention.attention.value.", "attn.v_proj."),
        ("attention.attention.q_bias", "attn.q_proj.bias"),
        ("attention.attention.v_bias", "attn.v_proj.bias"),
        ("attention.output.dense.", "attn.proj."),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
        ("mlp.weights_in.", "mlp.fc1."),
        ("mlp.weights_out.", "mlp.fc2."),
        ("mlp.down_proj.", "mlp.fc2."),
        *((f"attention.{part}_proj.", f"attn.{part}_proj.") for part in "qkv"),
        ("attention.o_proj.", "attn.proj."),
    ),
    joined=(
        *apart(),
        *apart(bias_of_keys=False)[1:],
        Joined("mlp.fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), (1, 1)),
        Joined("mlp.fc1.bias", ("mlp.gate_proj.bias", "mlp.up_proj.bias"), (1, 1)),
    ),
    other_blocks=r"(?:encoder\.)?layers?\.(\d+)\.",
)
_LEFT_OUT = r"embeddings\.mask_token$|pooler\."


_DINOV3_KERNEL = "embeddings.patch_embeddings.weight"
# transformers' DINOv3ViTModel under the names of timm's Eva, which is read further as Eva's own
_DINOV3_TABLE = KeyTable(
    outside=(
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.mask_token", "mask_token"),
        ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ),
    block="layer.",
    inside=(
        *((f"attention.{part}_proj.", f"attn.{part}_proj.") for part in "qkv"),
        ("attention.o_proj.", "attn.proj."),
        ("layer_scale1.lambda1", "gamma_1"),
        ("layer_scale2.lambda1", "gamma_2"),
        ("mlp.gate_proj.", "mlp.fc1_g."),
        ("mlp.up_proj.", "mlp.fc1."),
        ("mlp.down_proj.", "mlp.fc2."),
    ),
    other_blocks=r"model\.layer\.(\d+)\.",
)


def is_transformers_2d(state: Mapping[str, Any]) -> bool:
    """Return whether these are the names of one of transformers' ViTs, and its patch kernel is in 2D."""
    kernel = state.get(_KERNEL, state.get(_DINOV3_KERNEL))
    return isinstance(kernel, Tensor) and kernel.dim() == 4


def under_timms_2d_names(state: State) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Return the tensors of one of transformers' ViTs in 2D under the names of timm's.

    Args:
        state: a state dict for which :func:`is_transformers_2d` holds.

    Returns:
        The tensors; where those come from that have another name; the keys that are left out: the mask's token, a
        pooler.
    """
    left_out = tuple(key for key in state if re.match(_LEFT_OUT, key))
    own = {key: value for key, value in state.items() if key not in left_out}
    if _DINOV3_KERNEL not in state:
        named, origins = TABLE.to_ours(own)
        without_class_position(named, origins)
        return named, origins, left_out
    named, origins = _DINOV3_TABLE.to_ours(own)
    if "blocks.0.mlp.fc1_g.weight" in named:
        for key in [key for key in named if ".mlp.fc1." in key]:
            name = key.replace(".fc1.", ".fc1_x.")
            named[name], origins[name] = named.pop(key), origins.pop(key)
    return named, origins, left_out


def _is_image(state: State, scaled: bool) -> bool:
    here = _KERNEL in state and state[_KERNEL].dim() == 4
    return here and any(key.endswith("layer_scale1.lambda1") for key in state) == scaled


def _image_options(state: State, theirs: State, patch: Patch | None, *, norm_eps: float) -> BackboneOptions:
    """Return the keywords of a network in 2D, whose patch in 3D no tensor shows."""
    options = {**shown_options(state, "transformers' ViT"), **eps(norm_eps)}
    options |= {} if patch is None else {"patch_size": patch}
    prefix = dinov2_prefix(options)
    positions: dict[str, Any] = {"pos_embed": "learned" if POS in state else "none", "no_embed_class": prefix == 0}
    return {**options, **positions}, ()


def _video_options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "VideoMAE"), **eps(1e-12)}
    if POS not in state:
        return {**options, "pos_embed": "sincos", "no_embed_class": True}, ()
    positions, assumed = learned_positions(state, options, 0)
    return {**options, **positions}, assumed


def _adjust(named: dict[str, Tensor], origins: dict[str, str]) -> None:
    without_class_position(named, origins)


HF_VIT = KeyLayout(
    "hf_vit", partial(_is_image, scaled=False), TABLE, partial(_image_options, norm_eps=1e-12), _LEFT_OUT, _adjust
).family()
HF_DINOV2 = KeyLayout(
    "hf_dinov2", partial(_is_image, scaled=True), TABLE, partial(_image_options, norm_eps=1e-6), _LEFT_OUT, _adjust
).family()
HF_VIDEOMAE = KeyLayout(
    "hf_videomae",
    lambda state: _KERNEL in state and state[_KERNEL].dim() == 5,
    TABLE,
    _video_options,
    _LEFT_OUT,
    fixed_positions=flat_sincos,
).family()
