"""Attention with a gate for each head on its output (Qiu et al. 2025, arXiv:2505.06708)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import AttentionRope
from torch import Tensor, nn


class HeadGate(nn.Linear):
    """A linear layer with one output a head, repeated over the head's channels.

    Args:
        dim: width of a token.
        num_heads: number of heads, which divides ``dim``.
        kwargs: the other keywords of ``nn.Linear``.
    """

    def __init__(self, dim: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.head_dim = dim // num_heads

    def forward(self, input: Tensor) -> Tensor:
        """Return the gates' logits, ``(B, N, dim)``."""
        logits = F.linear(input, self.weight, self.bias)
        return logits.unsqueeze(-1).expand(-1, -1, -1, self.head_dim).flatten(-2)


class HeadGatedAttention(AttentionRope):
    """timm's AttentionRope whose heads' outputs are multiplied by ``sigmoid(gate(x))``, a number a head and token.

    Constructed as AttentionRope; with or without rotary positions (``attn_layer="head_gated"``).
    """

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        place = {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}
        self.gate = HeadGate(dim, num_heads, **place)
