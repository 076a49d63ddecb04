"""Names, and options read off shapes, that several families of checkpoints share."""

from __future__ import annotations

import math

HEAD_WIDTH = 64  # of ViT-B and most others
KERNEL, POS = "patch_embed.proj.weight", "pos_embed"  # in timm's layout, which is ours
COMBINER_SIGN = "patch_proj.weight"  # of a network over the vectors that another one gives of a scan's crops


def mlp_ratio(width: int, hidden: int) -> float:
    """Return the MLP ratio r with ``int(width * r) == hidden``; the quotient itself may round below that."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def even_side(count: int, axes: int = 3) -> int:
    """Return the side of the cube, or with 2 axes the square, that has ``count`` parts; 0 if there is none."""
    side = round(max(count, 0) ** (1 / axes))
    return side if side**axes == count else 0
