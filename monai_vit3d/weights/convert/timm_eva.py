"""timm's Eva class (DINOv3, EVA-02, Perception Encoder, rope ViTs): its angles in 3D, its layers by our names."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import Attention, AttentionRope
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from monai_vit3d.layers import RotaryPositions3D

# what computes the same as each of Eva's layers; rotary networks make their own of the first two
EVA_LAYERS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    EvaBlock: (Block,),
    EvaAttention: (Attention, AttentionRope),
    AttentionRope: (Attention, AttentionRope),
    EvaBlockPostNorm: (ResPostBlock,),
}


def eva_unhostable(model: nn.Module) -> str:
    """List the parts of an Eva that have no keyword in VisionTransformer3D."""
    attention, rope = [block.attn for block in model.blocks], model.rope
    if any(attn.gate is not None for attn in attention):
        return "its attention is gated"
    if any(getattr(attn, "num_kv_groups", 1) > 1 for attn in attention):
        return "its heads share keys and values (num_kv_heads)"
    if rope is None:
        return ""
    if isinstance(model.blocks[0], EvaBlockPostNorm):
        return "it has rotary positions in blocks that norm their output"
    if type(rope) not in (RotaryEmbeddingCat, RotaryEmbeddingDinoV3):
        return f"its rotary positions are a {type(rope).__name__}, which turn no axis by frequencies of its own"
    checks = {"rotate_half": rope.grid_indexing == "xy" and rope.rotate_half}
    if type(rope) is RotaryEmbeddingCat:
        checks |= {"grid_type": rope.grid_type != "index", "in_pixels": rope.in_pixels or rope.linear_bands}
        whole = rope.grid_offset % 1 == 0 and rope.grid_offset >= 0
        checks |= {"grid_offset": not whole or (rope.grid_offset > 0 and rope.ref_feat_shape is None)}
    else:
        checks |= {"normalize_coords": rope.normalize_coords != "separate", "min_period": rope.min_period is not None}
        checks |= {"grid_offset": rope.grid_offset != 0}
    odd = [f"{name}={getattr(rope, name)}" for name, is_odd in checks.items() if is_odd]
    return f"its rotary positions have {', '.join(odd)}, for which there is no keyword" if odd else ""


def eva_rope(model: nn.Module, axis: int) -> partial[RotaryPositions3D] | None:
    """Build the rotary positions of an Eva in 3D: angles in the plane as in 2D, none along the slice axis.

    Args:
        model: timm's Eva, one that :func:`eva_unhostable` has nothing against.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``.
    """
    rope = model.rope
    if rope is None:
        return None
    pairs = [int(rope.dim) // 4] * 2
    pairs.insert(axis, 0)
    options: dict[str, Any] = {
        "pairs": tuple(pairs),
        "temperature": float(rope.temperature),
        "rotate_half": bool(rope.rotate_half),
    }
    if type(rope) is RotaryEmbeddingDinoV3:
        return partial(RotaryPositions3D, unit="box", **options)
    if rope.ref_feat_shape is not None:
        span = [float(n) for n in rope.ref_feat_shape]
        span.insert(axis, 1.0)
        options |= {"reference": tuple(span), "offset": int(rope.grid_offset)}
    return partial(RotaryPositions3D, unit="patch", **options)


def under_block_names(
    state: dict[str, Tensor], origins: dict[str, str], model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename an Eva's tensors to the names of timm's Block: one qkv with all of its bias, LayerScale as a layer.

    Where timm's angles take the columns before the rows, queries and keys change their channels' order instead.

    Args:
        state: under Eva's own keys.
        origins: where those come from that had other names before.
        model: the Eva that they are of.

    Returns:
        New dicts of both.
    """
    named, made = dict(state), dict(origins)
    swap = model.rope is not None and model.rope.grid_indexing == "xy"
    for i, block in enumerate(model.blocks):
        at, heads = f"blocks.{i}.", int(block.attn.num_heads)
        qkv = [f"{at}attn.{part}_proj" for part in "qkv"]
        _join(named, made, f"{at}attn.qkv.weight", [f"{name}.weight" for name in qkv])
        _join(named, made, f"{at}attn.qkv.bias", [f"{name}.bias" for name in qkv])
        _join(named, made, f"{at}attn.qkv.bias", [f"{at}attn.q_bias", "zeros", f"{at}attn.v_bias"])
        _join(named, made, f"{at}attn.qkv.bias", [f"{qkv[0]}.bias", "zeros", f"{qkv[2]}.bias"])
        for n in (1, 2):
            _join(named, made, f"{at}ls{n}.gamma", [f"{at}gamma_{n}"])
        scale = f"{at}ls1.gamma"
        if scale in named and getattr(block, "gamma_2", None) is None:  # it has none: its factor is 1
            named.setdefault(f"{at}ls2.gamma", torch.ones_like(named[scale]))
            made.setdefault(f"{at}ls2.gamma", "ones")
        if swap:
            _swap(named, made, [f"{at}attn.qkv.weight", f"{at}attn.qkv.bias"], [heads, heads])
            _swap(named, made, [f"{at}attn.q_norm.weight", f"{at}attn.q_norm.bias"], [1])
            _swap(named, made, [f"{at}attn.k_norm.weight", f"{at}attn.k_norm.bias"], [1])
    return named, made


def _join(named: dict[str, Tensor], made: dict[str, str], target: str, parts: list[str]) -> None:
    """Put parts, if all are there, into one tensor; ``"zeros"`` stands for as many as the first has."""
    if not all(part in named or part == "zeros" for part in parts):
        return
    first = named[parts[0]]
    tensors = [named.pop(part) if part in named else torch.zeros_like(first) for part in parts]
    named[target] = torch.cat(tensors) if len(tensors) > 1 else first
    made[target] = "from " + " and ".join(made.pop(part, part).removeprefix("from ") for part in parts)


def _swap(named: dict[str, Tensor], made: dict[str, str], keys: list[str], heads: list[int]) -> None:
    """Exchange the halves of each head's channels in the tensors' first parts: queries, then keys."""
    for key in keys:
        value = named.get(key)
        if value is None or value.dim() < 1:
            continue
        parts = list(value.chunk(3) if len(heads) > 1 else [value])
        for i, n in enumerate(heads):
            parts[i] = parts[i].unflatten(0, (n, 2, -1)).flip(1).flatten(0, 2)
        named[key] = torch.cat(parts)
        made[key] = ", ".join(filter(None, [made.get(key), "rows before columns"]))
