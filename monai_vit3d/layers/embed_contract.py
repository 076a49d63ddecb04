"""The contract of a patch embedding: a token for each patch."""

from __future__ import annotations

from torch import Tensor

from .patch_embed import covering_grid
from .pos_embed import GridShape


def refuse_tokens(
    tokens: Tensor, layer: str, x: Tensor, patch_size: GridShape, embed_dim: int, as_grid: bool = False
) -> None:
    """Refuse what a patch embedding made of a batch, unless it is a token for each patch.

    Args:
        tokens: what it made.
        layer: its name, for the message.
        x: the batch, ``(B, C, H, W, D)``.
        patch_size: the patch, in voxels.
        embed_dim: the width of a token.
        as_grid: whether the tokens lie on their grid, ``(B, H', W', D', E)``.

    Raises:
        ValueError: another shape.
    """
    grid = covering_grid(x, patch_size)
    want = (x.shape[0], *(grid if as_grid else (grid[0] * grid[1] * grid[2],)), embed_dim)
    if tuple(tokens.shape) != want:
        raise ValueError(
            f"embed_layer={layer} made {tuple(tokens.shape)} of a batch {tuple(x.shape)}; expected a token for each "
            f"patch, D fastest, {want}: flatten its grid, or give it embed_dim={embed_dim} channels."
        )
