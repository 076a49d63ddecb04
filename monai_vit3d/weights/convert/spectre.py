"""SPECTRE (cclaess/SPECTRE): queries beside keys and values, rotary positions in the unit box, else timm's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import BackboneOptions, KeyLayout, Patch, State, has_timms_layout
from .key_table import Joined, KeyTable
from .our_layout import eps, learned_positions, shown_options
from .rotary_ladders import box_rotary, heads_of

_PERIODS = "rope.periods"
_TABLE = KeyTable(
    joined=(
        Joined("attn.qkv.weight", ("attn.q.weight", "attn.kv.weight"), (1, 2)),
        Joined("attn.qkv.bias", ("attn.q.bias", "attn.kv.bias"), (1, 2)),
    )
)


def _options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "SPECTRE"), **eps(1e-6)}
    options |= heads_of(theirs.get(_PERIODS), options["embed_dim"])
    positions, assumed = learned_positions(state, options, int(options["class_token"]) + options["reg_tokens"])
    return {**options, **positions}, assumed


def _rope(state: State, options: Mapping[str, Any], grid: Patch) -> Any:
    return box_rotary(state.get(_PERIODS), options["embed_dim"] // options["num_heads"], 1000.0)


SPECTRE = KeyLayout(
    "spectre",
    lambda state: has_timms_layout(state, 3) and "blocks.0.attn.kv.weight" in state,
    _TABLE,
    _options,
    rope=_rope,
    unadjust=lambda state: None,
    read=r"rope\.periods$",
    periods=_PERIODS,
).family()
