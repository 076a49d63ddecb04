"""Token heads: the tokens of several blocks in, logits out. Found by name.

A head is built as ``Head(tokens, num_classes, task, **options)`` and called as ``head(levels)``: the outputs
``(B, P + N, E)`` of the tapped blocks, prefix tokens first. Of a backbone with tokens of foreground only it is called
as ``head(levels, patch_valid)``: ``(B, N)`` bool, the patches that count. It returns plain logits, one tensor; its last
layer is ``output``, so that temperature scaling can go into its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, Mlp
from torch import Tensor, nn

from monai_vit3d.data.nearest import did_you_mean
from monai_vit3d.layers.foreground import key_mask, pool_foreground

from .task_losses import output_layer

TOKEN_POOLS = {"cls_token": (True, False), "avg": (False, True), "cls_token+avg": (True, True)}


@dataclass(frozen=True)
class Tokens:
    """The sizes of the tokens that a head reads."""

    embed_dim: int
    num_heads: int
    num_taps: int
    num_prefix_tokens: int
    class_token: bool


class ConcatPool(nn.Module):
    """Class token, mean of the patch tokens, or both, concatenated over the taps.

    DINOv2's linear probe (Oquab et al. 2023, arXiv:2304.07193) takes the class tokens of several blocks and the mean
    of the last one only.

    Args:
        tokens: what will come.
        pool: ``"cls_token"``, ``"avg"`` or ``"cls_token+avg"``; None takes what is there.

    Raises:
        ValueError: unknown pool, or a pool of the class token where there is none.
    """

    def __init__(self, tokens: Tokens, pool: str | None = None) -> None:
        super().__init__()
        if pool is None:
            pool = "cls_token+avg" if tokens.class_token else "avg"
        if pool not in TOKEN_POOLS:
            raise ValueError(f"pool={pool!r}; expected one of {', '.join(map(repr, TOKEN_POOLS))}.")
        self.cls_token, self.avg = TOKEN_POOLS[pool]
        if self.cls_token and not tokens.class_token:
            raise ValueError(f"pool={pool!r}, but the backbone has no class token: use 'avg', or class_token=True.")
        self.num_prefix_tokens = tokens.num_prefix_tokens
        self.num_features = tokens.embed_dim * tokens.num_taps * (int(self.cls_token) + int(self.avg))

    def forward(self, levels: list[Tensor], patch_valid: Tensor | None = None) -> Tensor:
        """Pool tapped tokens ``[(B, P + N, E)]`` to ``(B, num_features)``, the mean over the patches that count."""
        pooled: list[Tensor] = []
        for level in levels:
            if self.cls_token:
                pooled.append(level[:, 0])
            if self.avg:
                patches = level[:, self.num_prefix_tokens :]
                mean = patches.mean(1) if patch_valid is None else pool_foreground(patches, patch_valid, "avg")
                pooled.append(mean)
        return torch.cat(pooled, 1)


class LinearHead(nn.Module):
    """Pooled tokens and one linear layer.

    Args:
        tokens: what will come.
        num_classes: classes, labels or values.
        task: see :func:`output_layer`.
        pool: see :class:`ConcatPool`.
        drop_rate: dropout before the layer.
    """

    def __init__(
        self, tokens: Tokens, num_classes: int, task: str, pool: str | None = None, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.pool = ConcatPool(tokens, pool)
        self.drop = nn.Dropout(drop_rate)
        self.output = output_layer(task, self.pool.num_features, num_classes)

    def forward(self, levels: list[Tensor], patch_valid: Tensor | None = None) -> Tensor:
        """Compute logits of tapped tokens ``[(B, P + N, E)]``."""
        return self.output(self.drop(self.pool(levels, patch_valid)))


class MLPHead(nn.Module):
    """Pooled tokens, a norm, timm's MLP and a linear layer.

    Args:
        tokens: what will come.
        num_classes: classes, labels or values.
        task: see :func:`output_layer`.
        pool: see :class:`ConcatPool`.
        hidden: width of the hidden layer; None takes the backbone's.
        drop_rate: dropout after the hidden layer and before the last.
    """

    def __init__(
        self,
        tokens: Tokens,
        num_classes: int,
        task: str,
        pool: str | None = None,
        hidden: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        width = tokens.embed_dim if hidden is None else hidden
        self.pool = ConcatPool(tokens, pool)
        self.norm = nn.LayerNorm(self.pool.num_features)
        self.mlp = Mlp(self.pool.num_features, width, width, drop=drop_rate)
        self.output = output_layer(task, width, num_classes)

    def forward(self, levels: list[Tensor], patch_valid: Tensor | None = None) -> Tensor:
        """Compute logits of tapped tokens ``[(B, P + N, E)]``."""
        return self.output(self.mlp(self.norm(self.pool(levels, patch_valid))))


class AttentiveHead(nn.Module):
    """Learned queries that attend to the patch tokens of all taps, then a linear layer.

    Cross-attention as in V-JEPA's attentive probe (Bardes et al. 2024, arXiv:2404.08471, section 4) and CaiT's class
    attention (arXiv:2103.17239), by timm's ``AttentionPoolLatent``. A learned vector a tap tells its level.

    Args:
        tokens: what will come.
        num_classes: classes, labels or values.
        task: see :func:`output_layer`.
        num_queries: learned queries; their answers are concatenated.
        num_heads: attention heads; None takes the backbone's.
        mlp_ratio: hidden width of the MLP after the attention over ``embed_dim``.
        drop_rate: dropout before the last layer.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(
        self,
        tokens: Tokens,
        num_classes: int,
        task: str,
        num_queries: int = 1,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        heads = tokens.num_heads if num_heads is None else num_heads
        if num_queries < 1 or heads < 1 or tokens.embed_dim % heads:
            raise ValueError(
                f"num_queries={num_queries}, num_heads={heads}; expected positive numbers, and num_heads that "
                f"divide embed_dim={tokens.embed_dim}."
            )
        self.num_prefix_tokens = tokens.num_prefix_tokens
        self.level_embed = nn.Parameter(torch.zeros(tokens.num_taps, tokens.embed_dim))
        self.pool = AttentionPoolLatent(
            tokens.embed_dim,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            latent_len=num_queries,
            pool_type="",
            norm_layer=nn.LayerNorm,
        )
        self.drop = nn.Dropout(drop_rate)
        self.output = output_layer(task, num_queries * tokens.embed_dim, num_classes)

    def forward(self, levels: list[Tensor], patch_valid: Tensor | None = None) -> Tensor:
        """Compute logits of tapped tokens ``[(B, P + N, E)]``; of a volume where no patch counts, of zeros."""
        seen: list[Tensor] = []
        for i, level in enumerate(levels):
            seen.append(level[:, self.num_prefix_tokens :] + self.level_embed[i])
        tokens = torch.cat(seen, 1)
        if patch_valid is None:
            answers = self.pool(tokens)
        else:
            answers = self.pool(tokens, key_mask(patch_valid.repeat(1, len(levels)), 0))
            answers = answers.masked_fill(~patch_valid.any(1)[:, None, None], 0.0)
        return self.output(self.drop(answers.flatten(1)))


HEADS: dict[str, type[nn.Module]] = {"linear": LinearHead, "attentive": AttentiveHead, "mlp": MLPHead}


def create_head(name: str, tokens: Tokens, num_classes: int, task: str, **options: Any) -> nn.Module:
    """Build a head by name.

    Args:
        name: a key of ``HEADS``.
        tokens: what it will read.
        num_classes: classes, labels or values.
        task: see :func:`output_layer`.
        options: the head's own keywords.

    Raises:
        ValueError: an unknown name.
    """
    if name not in HEADS:
        raise ValueError(
            f"head={name!r} is unknown; expected one of {', '.join(map(repr, HEADS))}.{did_you_mean(name, HEADS)}"
        )
    return HEADS[name](tokens, num_classes, task, **options)
