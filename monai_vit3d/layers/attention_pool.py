"""ProjectedAttentionPool: tokens to one vector by an attention whose query is their own mean."""

from __future__ import annotations

from torch import Tensor, nn


class ProjectedAttentionPool(nn.Module):
    """Project tokens, and pool them by attention: the query is the mean of the projected tokens.

    COLIPRI's image head (Wald et al. 2026, arXiv:2510.15042) is one with twelve heads. What comes out is not
    normalised to unit length, which its authors do to compare it with the vector of a text.

    Args:
        embed_dim: width of the tokens.
        out_dim: width of the vector.
        num_heads: of the attention.
    """

    def __init__(self, embed_dim: int, out_dim: int, num_heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, out_dim)
        self.attn = nn.MultiheadAttention(out_dim, num_heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool ``(B, N, E)`` to ``(B, out_dim)``."""
        tokens = self.projection(tokens)
        pooled: Tensor = self.attn(tokens.mean(1, keepdim=True), tokens, tokens, need_weights=False)[0]
        return pooled[:, 0]
