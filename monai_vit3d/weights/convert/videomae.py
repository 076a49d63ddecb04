"""VideoMAE v1 and v2 in their own layout: biases of queries and values alone, positions that the files do not hold."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .family import BackboneOptions, KeyLayout, Patch, State, has_timms_layout
from .key_table import Joined, KeyTable
from .our_layout import eps, learned_positions, shown_options
from .shapes import POS


def flat_sincos(grid: Patch, embed_dim: int) -> Tensor:
    """Return VideoMAE's positions: one sine or cosine a channel of the patch's running number, D fastest.

    Args:
        grid: patches along the three axes.
        embed_dim: channels.

    Returns:
        ``(1, N, embed_dim)`` float32.
    """
    channel = torch.arange(embed_dim, dtype=torch.float64)
    rates = 10000.0 ** (-2 * torch.div(channel, 2, rounding_mode="floor") / embed_dim)
    angles = torch.arange(prod(grid), dtype=torch.float64)[:, None] * rates
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()[None]


def _options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "VideoMAE"), **eps(1e-6)}
    if POS not in state:
        return {**options, "pos_embed": "sincos", "no_embed_class": True}, ()
    positions, assumed = learned_positions(state, options, int(options["class_token"]))
    return {**options, **positions}, assumed


VIDEOMAE = KeyLayout(
    "videomae",
    lambda state: has_timms_layout(state, 3) and "blocks.0.attn.q_bias" in state,
    KeyTable(
        inside=(("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")),
        joined=(Joined("attn.qkv.bias", ("attn.q_bias", None, "attn.v_bias"), (1, 1, 1)),),
    ),
    _options,
    fixed_positions=flat_sincos,
).family()
