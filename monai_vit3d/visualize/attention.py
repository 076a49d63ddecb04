"""Map the attention of a network's tokens and queries to patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from timm.layers import Attention, AttentionPoolLatent, AttentionRope
from torch import Tensor, nn

from monai_vit3d.networks import TokenClassifier, VisionTransformer3D
from monai_vit3d.networks.heads import AttentiveHead
from monai_vit3d.networks.wrappers import evaluation_mode

from .voxels import as_batch, backbone_of, background_masked, like, on_grid, to_voxels


class AttentionMaps(NamedTuple):
    """Shares of attention, ``(B, 1, H, W, D)`` float32: over the patch grid, each volume's patches sum to 1.

    Voxels are interpolated between the patches' centres; a share is a patch's, not a voxel's.

    Attributes:
        rollout: attention through all blocks.
        last_block: attention in the last block.
        head: attention of the attentive head's queries, over all taps; None without such a head.
    """

    rollout: Tensor
    last_block: Tensor
    head: Tensor | None


def attention_maps(model: nn.Module, volume: Tensor) -> AttentionMaps:
    """Map attention on the volume's own voxels, averaged over heads.

    ``rollout`` multiplies ``(A + I) / 2`` of all blocks (Abnar and Zuidema 2020, arXiv:2005.00928, section 3): how much
    each input patch contributes to the output token. ``last_block`` is the last block's A alone. Both are those of the
    class token or, without one, the mean of the patch tokens; prefix tokens are left out and the rest sums to 1.
    ``head`` averages the learned queries of an attentive head (or of ``global_pool="map"``) and adds up the taps.

    Patches without a token (``tokens="foreground"``) have no share. The weights of one block at a time are held for all
    heads, ``B * heads * T**2`` numbers for T tokens, and their mean over the heads for every block. The model stays as
    it is.

    Args:
        model: a :class:`TokenClassifier` or a :class:`VisionTransformer3D`, with or without a head.
        volume: ``(B, C, H, W, D)``, or one ``(C, H, W, D)``.

    Returns:
        The maps, with the leading axes of ``volume`` and one channel, and its metadata if it is a MetaTensor.

    Raises:
        TypeError: another model.
        ValueError: an attention without plain weights (timm's ``"diff"``), or what the backbone refuses.

    Example:
        >>> net = VisionTransformer3D((64, 64, 64), 16, num_classes=2)
        >>> attention_maps(net, torch.zeros(1, 1, 64, 64, 64)).rollout.shape
        torch.Size([1, 1, 64, 64, 64])
    """
    backbone, batch = backbone_of(model), as_batch(volume)
    watched = _watched(backbone, _attentive_pool(model))
    with background_masked(backbone, batch) as valid, torch.no_grad(), evaluation_mode(model), watched as found:
        model(batch)
    weights, pooled = found
    start, prefix = _start(weights[-1], backbone, valid), backbone.num_prefix_tokens
    rows = [_roll_out(start, weights)[:, prefix:], _follow(start, weights[-1])[:, prefix:]]
    if pooled:
        skip = prefix if model is backbone and backbone.pool_include_prefix else 0
        rows.append(pooled[0][:, skip:].unflatten(1, (-1, rows[0].shape[1])).sum(1))
    if valid is not None:
        rows = [row * valid for row in rows]
    grids = [on_grid(_share(row), backbone, batch) for row in rows]
    maps = [like(to_voxels(grid, backbone.patch_size, batch.shape[2:]), volume) for grid in grids]
    return AttentionMaps(maps[0], maps[1], maps[2] if pooled else None)


def _start(weights: Tensor, backbone: VisionTransformer3D, valid: Tensor | None) -> Tensor:
    """Start from the class token or from all patches that have a token: a distribution over tokens ``(B, T)``."""
    row, prefix = torch.zeros_like(weights[:, 0]), backbone.num_prefix_tokens
    if backbone.has_class_token:
        row[:, 0] = 1
    else:
        row[:, prefix:] = 1.0 if valid is None else valid.to(row.dtype)
    return _share(row)


def _share(row: Tensor) -> Tensor:
    """Divide each row by its sum; a row of zeros stays so."""
    return row / row.sum(1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)


def _follow(row: Tensor, weights: Tensor) -> Tensor:
    """Trace a distribution over tokens ``(B, T)`` back through one attention ``(B, T, T)``."""
    return (row[:, :, None] * weights).sum(1)  # no matmul: autocast would round the shares


def _roll_out(row: Tensor, weights: list[Tensor]) -> Tensor:
    """Multiply a row by all ``(A + I) / 2``, from the last block to the first, without T x T products."""
    for matrix in reversed(weights):
        row = (row + _follow(row, matrix)) / 2
    return row


@contextmanager
def _watched(backbone: VisionTransformer3D, pool: nn.Module | None) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Collect the weights of all blocks ``(B, T, T)`` and of the pool ``(B, M)`` in a forward pass, heads averaged."""
    attentions = [_plain_attention(block) for block in backbone.blocks]
    weights: list[Tensor] = []
    pooled: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        weights.append(output.mean(1, dtype=torch.float32))

    def keep_pool(module: Any, inputs: tuple[Tensor]) -> None:
        pooled.append(_pool_weights(module, inputs[0]))

    with ExitStack() as stack:
        for attention in attentions:
            # a fused kernel does not compute the weights; without it they pass through the (idle) dropout
            stack.callback(setattr, attention, "fused_attn", attention.fused_attn)
            attention.fused_attn = False
            stack.callback(attention.attn_drop.register_forward_hook(keep).remove)
        if pool is not None:
            stack.callback(pool.register_forward_pre_hook(keep_pool).remove)
        yield weights, pooled


def _plain_attention(block: nn.Module) -> Any:
    """Return the attention of a block.

    Raises:
        ValueError: its weights are not shares that sum to 1.
    """
    attention: Any = getattr(block, "attn", block)
    if type(attention).forward not in (Attention.forward, AttentionRope.forward):
        raise ValueError(
            f"the blocks attend by {type(attention).__name__}, which has no plain weights to show; expected timm's "
            "Attention (attn_layer='attn'). grad_cam and occlusion_map take any attention."
        )
    return attention


def _attentive_pool(model: Any) -> nn.Module | None:
    if not isinstance(model, TokenClassifier):
        return model.attn_pool
    return model.head.pool if isinstance(model.head, AttentiveHead) else None


def _pool_weights(pool: AttentionPoolLatent, x: Tensor) -> Tensor:
    """Compute the attention of the latent queries to tokens ``(B, M, E)``, heads and queries averaged: ``(B, M)``.

    timm's forward pass does not expose its weights: queries and keys are computed again.
    """
    q = pool.q(pool.latent).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
    k = pool.kv(x).chunk(2, 2)[0].unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
    scores = pool.scale * pool.q_norm(q) @ pool.k_norm(k).transpose(-2, -1)
    return scores.softmax(-1).mean((1, 2), dtype=torch.float32)
