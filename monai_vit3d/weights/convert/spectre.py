"""SPECTRE (cclaess/SPECTRE): queries beside keys and values, rotary positions in the unit box, else timm's layout.

Its second network, the combiner, has the same blocks over the grid of a scan's crops. A token is a crop, projected from
the class token and the mean of the patch tokens that the first network gives of it: a volume of so many channels, in
patches of one voxel.

The classes' own eps is 1e-6, which is taken here; the published sizes set 1e-5, and their entry says it (``norm_eps``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .family import BackboneOptions, KeyLayout, Patch, State, has_timms_layout
from .key_table import Joined, KeyTable
from .our_layout import eps, learned_positions, shown_options
from .rotary_ladders import Rotary, box_rotary, heads_of
from .shapes import COMBINER_SIGN, KERNEL

_PERIODS = "rope.periods"
_JOINED = (
    Joined("attn.qkv.weight", ("attn.q.weight", "attn.kv.weight"), (1, 2)),
    Joined("attn.qkv.bias", ("attn.q.bias", "attn.kv.bias"), (1, 2)),
)


def _options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "SPECTRE"), **eps(1e-6)}
    options |= heads_of(theirs.get(_PERIODS), options["embed_dim"])
    positions, assumed = learned_positions(state, options, int(options["class_token"]) + options["reg_tokens"])
    return {**options, **positions}, assumed


def _rope(state: State, options: Mapping[str, Any], slowest: float) -> Rotary:
    return box_rotary(state.get(_PERIODS), options["embed_dim"] // options["num_heads"], slowest)


def _as_kernel(named: dict[str, Tensor], origins: dict[str, str]) -> None:
    """Make the projection of a crop's vector a kernel of one voxel."""
    named[KERNEL] = named[KERNEL][:, :, None, None, None]


def _as_projection(state: dict[str, Tensor]) -> None:
    state[KERNEL] = state[KERNEL].flatten(1)


SPECTRE = KeyLayout(
    "spectre",
    lambda state: has_timms_layout(state, 3) and "blocks.0.attn.kv.weight" in state,
    KeyTable(joined=_JOINED),
    _options,
    rope=lambda state, options, grid: _rope(state, options, 1000.0),
    unadjust=lambda state: None,
    read=r"rope\.periods$",
    periods=_PERIODS,
).family()

SPECTRE_COMBINER = KeyLayout(
    "spectre_combiner",
    lambda state: COMBINER_SIGN in state and "blocks.0.attn.kv.weight" in state,
    KeyTable(outside=(("patch_proj.", "patch_embed.proj."),), joined=_JOINED),
    _options,
    adjust=_as_kernel,
    rope=lambda state, options, grid: _rope(state, options, 100.0),
    unadjust=_as_projection,
    read=r"rope\.periods$",
    periods=_PERIODS,
).family()
