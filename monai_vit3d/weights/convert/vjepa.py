"""V-JEPA and V-JEPA 2 in Meta's layout and in transformers', and Neuro-JEPA, which gates each head.

V-JEPA 2's rotary positions repeat each ladder of frequencies within its axis (Assran et al. 2025, arXiv:2506.09985).
Inputs are ``(B, 3, T, H, W)``: frames lie along the first axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .family import BackboneOptions, KeyLayout, Patch, State, has_timms_layout
from .key_table import KeyTable, apart
from .our_layout import eps, learned_positions, shown_options
from .rotary_ladders import repeated_rotary
from .shapes import KERNEL, POS

_IN_HF = (
    ("attention.query.", "attn.q_proj."),
    ("attention.key.", "attn.k_proj."),
    ("attention.value.", "attn.v_proj."),
    ("attention.proj.", "attn.proj."),
)
_HF_TABLE = KeyTable(
    outside=(("embeddings.patch_embeddings.proj.", "patch_embed.proj."), ("layernorm.", "norm.")),
    block="layer.",
    inside=_IN_HF,
    joined=apart(),
)
_NEURO_TABLE = KeyTable(inside=(("attn.proj_attn_gate.", "attn.gate."),))
_SWIGLU = ((".mlp.fc1.", ".mlp.fc1_g."), (".mlp.fc2.", ".mlp.fc1_x."), (".mlp.fc3.", ".mlp.fc2."))


def is_vjepa(state: State) -> bool:
    """Return whether a state dict has kernels over 2 frames of RGB with square sides, and no prefix tokens."""
    if not has_timms_layout(state, 3) or {"cls_token", "reg_token"} & state.keys():
        return False
    channels, frames, height, width = state[KERNEL].shape[1:]
    return (channels, frames) == (3, 2) and height == width > 2


def _adjust(named: dict[str, Tensor], origins: dict[str, str]) -> None:
    """Give a gated MLP of three layers timm's names: the gate, the values, the way out."""
    if "blocks.0.mlp.fc3.weight" not in named:
        return
    old = {key: named.pop(key) for key in list(named) if ".mlp.fc" in key}
    for key, value in old.items():
        theirs, ours = next(pair for pair in _SWIGLU if pair[0] in key)
        name = key.replace(theirs, ours)
        named[name], origins[name] = value, origins.pop(key, f"from {key}")


def _unadjust(state: dict[str, Tensor]) -> None:
    if "blocks.0.mlp.fc1_g.weight" not in state:
        return
    old = {key: state.pop(key) for key in list(state) if ".mlp.fc" in key}
    for key, value in old.items():
        theirs, ours = next(pair for pair in _SWIGLU if pair[1] in key)
        state[key.replace(ours, theirs)] = value


def _options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "V-JEPA"), **eps(1e-6)}
    positions, assumed = learned_positions(state, options, 0)
    return {**options, **positions}, assumed


def _rope(state: State, options: Mapping[str, Any], grid: Patch) -> Any:
    return None if POS in state else repeated_rotary(options)  # the first V-JEPA has a table of positions


def _neuro_rope(state: State, options: Mapping[str, Any], grid: Patch) -> Any:
    return repeated_rotary(options, (2, 0, 1))


VJEPA = KeyLayout("vjepa2", is_vjepa, KeyTable(), _options, adjust=_adjust, rope=_rope, unadjust=_unadjust).family()
HF_VJEPA = KeyLayout(
    "hf_vjepa2",
    lambda state: "embeddings.patch_embeddings.proj.weight" in state and "layer.0.attention.query.weight" in state,
    _HF_TABLE,
    _options,
    adjust=_adjust,
    rope=_rope,
    unadjust=_unadjust,
).family()
NEURO_JEPA = KeyLayout(
    "neuro_jepa",
    lambda state: has_timms_layout(state, 3) and "blocks.0.attn.proj_attn_gate.weight" in state,
    _NEURO_TABLE,
    _options,
    adjust=_adjust,
    rope=_neuro_rope,
    unadjust=_unadjust,
).family()
