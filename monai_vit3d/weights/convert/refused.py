"""Vision Transformers that are known and cannot be hosted, each with what VisionTransformer3D lacks for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Refused(NamedTuple):
    """A kind of network: a pattern that one of its tensors' names has, and why it is refused."""

    sign: re.Pattern[str]
    reason: str


# the first row that fits names the network
REFUSED = (
    Refused(
        re.compile(r"(^|\.)experts\."),
        "its blocks have a mixture of experts (MoE) in place of the MLP, as Neuro-JEPA's released weights; there is no "
        "such layer here, only dense blocks are read",
    ),
    Refused(
        re.compile(r"(^|\.)attn\.rel_pos_[dhw]$"),
        "the image encoder of SAM-Med3D or SAM: its attention has decomposed relative positions in windows, for which "
        "there is no layer here",
    ),
    Refused(
        re.compile(r"(^|\.)(enc_(spatial|temporal)_transformer|to_patch_emb(_first_frame)?)\."),
        "CT-CLIP's CTViT: its attention is factored into space and time with a bias by relative position, for which "
        "there is no layer here",
    ),
    Refused(
        re.compile(r"layers\d*\.\d+\.blocks\.\d+\..*(relative_position_bias_table|cpb_mlp\.)"),
        "a Swin transformer (as SwinUNETR's): its attention works in shifted windows with relative positions on a "
        "pyramid of grids, for which there is no layer here",
    ),
)


def reason_to_refuse(names: Iterable[str]) -> str:
    """Return why a network with tensors of these names cannot be hosted; "" if nothing is known against it."""
    names = list(names)
    return next((row.reason for row in REFUSED if any(row.sign.search(name) for name in names)), "")
