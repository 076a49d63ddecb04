"""DINOv3 in 3D (FlexiCT and its kin): registers as ``storage_tokens``, rotary positions in the box, a bias mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .family import BackboneOptions, KeyLayout, Patch, State
from .key_table import OUR_BLOCK, KeyTable
from .our_layout import eps, learned_positions, shown_options
from .rotary_ladders import box_rotary, heads_of

_TABLE = KeyTable(
    outside=(("patch_embed_3D.", "patch_embed."), ("storage_tokens", "reg_token")),
    inside=(("mlp.w1.", "mlp.fc1_g."), ("mlp.w2.", "mlp.fc1_x."), ("mlp.w3.", "mlp.fc2.")),
)
_PERIODS = ("rope_embed_3D.periods", "rope_embed.periods")
_BASE = 100.0


def _matches(state: State) -> bool:
    if "patch_embed_3D.proj.weight" in state:
        return True
    kernel = state.get("patch_embed.proj.weight")
    return kernel is not None and kernel.dim() == 5 and any(key in state for key in ("storage_tokens", *_PERIODS))


def _adjust(named: dict[str, Tensor], origins: dict[str, str]) -> None:
    """Take biases as they are computed: times their mask, which is 0 for the keys."""
    for key in [key for key in named if OUR_BLOCK.match(key) and key.endswith("attn.qkv.bias_mask")]:
        bias = key.removesuffix("_mask")
        if bias in named:
            named[bias] = named[bias] * named.pop(key).to(named[bias].dtype)
            origins[bias] = f"from {bias} and {key}"


def _periods(state: State) -> Tensor | None:
    return next((state[key] for key in _PERIODS if key in state), None)


def _options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "DINOv3"), **eps(1e-6)}
    options |= heads_of(_periods(theirs), options["embed_dim"])
    positions, assumed = learned_positions(state, options, 0)
    return {**options, **positions}, assumed


def _rope(state: State, options: Mapping[str, Any], grid: Patch) -> Any:
    head = options["embed_dim"] // options["num_heads"]
    pairs = head // 6
    # the ladder is that of the plane, a quarter of the head an axis: 100 ** (-4 k / head)
    return box_rotary(_periods(state), head, _BASE ** (4 * pairs / head))


DINOV3_3D = KeyLayout(
    "dinov3_3d",
    _matches,
    _TABLE,
    _options,
    left_out=r"mask_token$|patch_embed_2D\.|rope_embed_2D\.",
    adjust=_adjust,
    rope=_rope,
    unadjust=lambda state: None,
    read=r"rope_embed(_3D)?\.periods$",
    periods=_PERIODS[0],
).family()
