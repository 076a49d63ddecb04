"""Allowed values of VisionTransformer3D's arguments, and what they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, GatedMlp, GluMlp, Mlp, SwiGLU, get_act_layer, get_norm_layer
from timm.models.vision_transformer import ATTN_LAYERS, Block
from torch import Tensor, nn

from monai_vit3d.layers import EMBED_LAYERS, HeadGatedAttention, RotaryBlock, RotaryPositions3D, to_3tuple
from monai_vit3d.layers.pos_embed import GridShape

Layer = Callable[..., nn.Module] | str | None
Indices = int | Sequence[int] | None  # block numbers, as forward_intermediates takes them
GLOBAL_POOLS = ("cls_token", "avg", "max", "avgmax", "map", "")
WEIGHT_INITS = ("", "jax", "jax_nlhb", "moco", "reset", "skip")
ATTENTIONS = {**ATTN_LAYERS, "head_gated": HeadGatedAttention}
MLPS = {"mlp": Mlp, "glumlp": GluMlp, "swiglu": SwiGLU, "gatedmlp": GatedMlp}


def resolve_pool(global_pool: str, class_token: bool) -> str:
    """Return the pooling mode under its own name; timm's ``"token"`` means ``"cls_token"``.

    Raises:
        ValueError: unknown mode, or a class-token pool where there is no class token.
    """
    pool = "cls_token" if global_pool == "token" else global_pool
    if pool not in GLOBAL_POOLS:
        raise ValueError(f"global_pool={global_pool!r}; expected one of {', '.join(map(repr, GLOBAL_POOLS))}.")
    if pool == "cls_token" and not class_token:
        raise ValueError(
            f"global_pool={global_pool!r} needs a class token, but class_token=False: choose 'avg', 'max', 'avgmax', "
            "'map' or '', or class_token=True."
        )
    return pool


def resolve_embed(embed_layer: Callable[..., nn.Module] | str) -> Callable[..., nn.Module]:
    """Return a patch embedding's constructor from itself or its name in :data:`~monai_vit3d.layers.EMBED_LAYERS`.

    Raises:
        ValueError: an unknown name.
    """
    return _by_table("embed_layer", embed_layer, EMBED_LAYERS["patch"], EMBED_LAYERS)


def resolve_norm(norm_layer: Layer) -> Callable[..., nn.Module]:
    """Return a norm constructor from itself, timm's name (``"layernorm"``, ``"rmsnorm"``), or None (the default).

    Raises:
        ValueError: a name that timm does not know.
    """
    return _by_timm("norm_layer", norm_layer, nn.LayerNorm, get_norm_layer, "'layernorm' or 'rmsnorm'")


def resolve_act(act_layer: Layer) -> Callable[..., nn.Module]:
    """Return an activation constructor from itself, timm's name (``"gelu"``, ``"silu"``), or None (the default).

    Raises:
        ValueError: a name that timm does not know.
    """
    return _by_timm("act_layer", act_layer, nn.GELU, get_act_layer, "'gelu' or 'silu'")


def resolve_mlp(mlp_layer: Layer) -> Callable[..., nn.Module]:
    """Return an MLP constructor from itself, its name (a key of ``MLPS``), or None (the default).

    Raises:
        ValueError: an unknown name.
    """
    return _by_table("mlp_layer", mlp_layer, Mlp, MLPS)


def resolve_attn(attn_layer: Layer) -> Callable[..., nn.Module]:
    """Return an attention constructor from itself, its name (a key of ``ATTENTIONS``), or None (the default).

    Raises:
        ValueError: an unknown name.
    """
    return _by_table("attn_layer", attn_layer, Attention, ATTENTIONS)


def resolve_rope(rope: Layer, head_dim: int) -> nn.Module | None:
    """Build rotary positions from their unit (``"patch"``, ``"mm"``, ``"box"``) or a constructor; None for none.

    Raises:
        ValueError: an unknown unit, or heads of a width that cannot be rotated.
    """
    if rope is None:
        return None
    return RotaryPositions3D(head_dim, rope) if isinstance(rope, str) else rope(head_dim)


def resolve_tokens(tokens: Any) -> tuple[bool, float | None]:
    """Return whether background gets no token, and the most that a voxel of it has; None: patches that are constant.

    Raises:
        ValueError: neither ``"all"`` nor ``"foreground"`` nor a finite number.
    """
    if tokens in ("all", "foreground"):
        return tokens == "foreground", None
    if isinstance(tokens, bool) or not isinstance(tokens, Real) or not math.isfinite(tokens):
        raise ValueError(
            f"tokens={tokens!r}; expected 'all', 'foreground' (patches that are not constant), or a number in the "
            "units of the network's input (patches with a voxel above it)."
        )
    return True, float(tokens)


def rotary_block(
    rope: nn.Module, block_fn: Callable[..., nn.Module], attention: Callable[..., nn.Module], prefix: int
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """Return the constructors of a block that takes the angles of ``rope``, and of its attention.

    Args:
        rope: the network's rotary positions.
        block_fn: Block, a :class:`RotaryBlock`, or a partial of one.
        attention: timm's Attention, AttentionRope, or a class derived from the latter.
        prefix: number of prefix tokens.

    Raises:
        ValueError: another block or attention: nobody would hand the angles on, or use them.
    """
    base = getattr(block_fn, "func", block_fn)
    fits = base is Block or (isinstance(base, type) and issubclass(base, RotaryBlock))
    rotary = isinstance(attention, type) and issubclass(attention, AttentionRope)
    if not (attention is Attention or rotary) or not fits:
        names = [getattr(layer, "__name__", repr(layer)) for layer in (base, attention)]
        raise ValueError(
            f"rope with block_fn={names[0]} and attn_layer={names[1]}: rotary positions need timm's "
            "Block (or a RotaryBlock, or a partial of one) and its Attention. Leave them at their defaults, or rope "
            "at None."
        )
    base = RotaryBlock if base is Block else base
    args, options = getattr(block_fn, "args", ()), getattr(block_fn, "keywords", {})
    block = partial(base, *args, **{**options, "num_prefix_tokens": prefix, "rotate_half": rope.rotate_half})
    return block, attention if rotary else AttentionRope


def _by_timm(
    argument: str, layer: Layer, default: type[nn.Module], find: Callable[..., Any], examples: str
) -> Callable[..., nn.Module]:
    try:
        return default if layer is None else find(layer)
    except (AssertionError, KeyError):
        raise ValueError(f"{argument}={layer!r} is not known to timm; try {examples}.") from None


def _by_table(
    argument: str, layer: Layer, default: type[nn.Module], table: Mapping[str, type[nn.Module]]
) -> Callable[..., nn.Module]:
    if not isinstance(layer, str):
        return default if layer is None else layer
    if layer not in table:
        raise ValueError(f"{argument}={layer!r}; expected one of {', '.join(map(repr, table))}, or a class.")
    return table[layer]


def resolve_indices(indices: Indices, depth: int, *, once: bool = True) -> list[int]:
    """Return block numbers in block order, counted from 0, each once.

    Args:
        indices: one block, several, or None for all; negative ones count from the end.
        depth: number of blocks.
        once: refuse two that name the same block.

    Raises:
        ValueError: an index out of range, or with ``once`` two that name the same block.
    """
    numbers = range(depth) if indices is None else (indices,) if isinstance(indices, int) else tuple(indices)
    for i in numbers:
        if not -depth <= i < depth:
            raise ValueError(
                f"block index {i} is out of range: the network has {depth} blocks, {-depth} to {depth - 1}."
            )
    take = {i % depth for i in numbers}
    if once and len(take) < len(numbers):
        raise ValueError(f"indices={tuple(numbers)} name a block twice (of {depth} blocks): name each once.")
    return sorted(take)


def last_blocks(indices: int | Sequence[int], depth: int) -> Sequence[int]:
    """Return block numbers, where an int means the last n of ``depth`` blocks, as in timm.

    Raises:
        ValueError: more blocks than there are, or none.
    """
    if not isinstance(indices, int):
        return indices
    if not 1 <= indices <= depth:
        raise ValueError(f"the last {indices} blocks; the network has {depth}: expected 1 to {depth}.")
    return range(depth - indices, depth)


def check_ids_keep(ids_keep: Tensor, batch: int, count: int) -> None:
    """Refuse patch numbers of a wrong shape or type, or that no patch has.

    Args:
        ids_keep: ``(B, N)`` long.
        batch: B.
        count: patches of the input.

    Raises:
        ValueError: another shape or type, or a number that no patch has.
    """
    if ids_keep.dim() != 2 or ids_keep.shape[0] != batch or ids_keep.shape[1] < 1 or ids_keep.dtype != torch.long:
        raise ValueError(
            f"ids_keep of shape {tuple(ids_keep.shape)}, {ids_keep.dtype}; expected torch.long patch numbers of shape "
            f"({batch}, N), N of 1 or more."
        )
    if bool(((ids_keep < 0) | (ids_keep >= count)).any()):
        raise ValueError(
            f"ids_keep has numbers from {int(ids_keep.min())} to {int(ids_keep.max())}; the input has {count} patches, "
            f"0 to {count - 1}."
        )


def resolve_map_format(output_fmt: Any) -> bool:
    """Return whether a feature format is that of patch grids.

    Args:
        output_fmt: ``"NLC"``, ``"NCHWD"``, timm's ``"NCHW"`` for it, or timm's ``Format`` of these names.

    Raises:
        ValueError: another format.
    """
    name = getattr(output_fmt, "value", output_fmt)
    if name not in ("NLC", "NCHWD", "NCHW"):
        raise ValueError(f"output_fmt={name!r}; expected 'NLC' or 'NCHWD'.")
    return bool(name != "NLC")


def spread_blocks(depth: int, parts: int) -> list[int]:
    """Return the last block of each of ``parts`` equal parts of the depth."""
    return [(i + 1) * depth // parts - 1 for i in range(parts)]


def patch_size_of(backbone: Any) -> GridShape:
    """Return the voxels per token along each axis, of any backbone that keeps the contract."""
    patch = getattr(backbone, "patch_size", None) or backbone.patch_embed.patch_size
    return to_3tuple(patch, "patch_size")


def require_final_norm(backbone: nn.Module, owner: str) -> None:
    """Refuse a backbone whose final norm stands behind a pooling that ``owner`` does not have.

    Raises:
        ValueError: it was built with ``fc_norm=True``.
    """
    if getattr(backbone, "fc_norm_arg", None):
        raise ValueError(f"fc_norm=True puts the final norm behind a pooling that a {owner} has not: use None.")


def require_all_tokens(backbone: nn.Module, owner: str) -> None:
    """Refuse a backbone whose background has no tokens where ``owner`` reads those of every patch.

    Raises:
        ValueError: it has ``tokens`` of foreground only.
    """
    tokens = getattr(backbone, "tokens", "all")
    if tokens != "all":
        raise ValueError(f"tokens={tokens!r}: {owner} reads the tokens of all patches: call set_tokens('all') first.")


def check_numbers(embed_dim: int, depth: int, num_heads: int, reg_tokens: int, pos_embed: str) -> None:
    """Refuse numbers of which no network can be built.

    Raises:
        ValueError: a number out of its range, or an unknown ``pos_embed``.
    """
    if depth < 1 or num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
        raise ValueError(
            f"embed_dim={embed_dim}, depth={depth}, num_heads={num_heads}; expected positive numbers, and "
            "embed_dim divisible by num_heads."
        )
    if reg_tokens < 0:
        raise ValueError(f"reg_tokens={reg_tokens}; expected 0 or more.")
    if pos_embed not in ("learned", "sincos", "none"):
        raise ValueError(f"pos_embed={pos_embed!r}; expected one of 'learned', 'sincos', 'none'.")


def check_weight_init(mode: str) -> None:
    """Refuse an unknown scheme.

    Raises:
        ValueError: not one of timm's.
    """
    if mode not in WEIGHT_INITS:
        raise ValueError(f"weight_init={mode!r}; expected one of {', '.join(map(repr, WEIGHT_INITS))}.")
