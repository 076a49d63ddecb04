"""The patch embedding of AIMv2 in 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import PatchEmbed3D


class NormedPatchEmbed3D(PatchEmbed3D):
    """A patch embedding whose tokens are normed before they get positions: timm's ``embed_norm_layer``.

    Args:
        args: as :class:`PatchEmbed3D`.
        norm_layer: constructor of the norm.
        embed_dim: width of a token.
        device: where to create the parameters.
        dtype: in which type to create them.
        options: as :class:`PatchEmbed3D`.
    """

    def __init__(
        self,
        *args: Any,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        embed_dim: int = 768,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, embed_dim=embed_dim, device=device, dtype=dtype, **options)
        self.norm = norm_layer(embed_dim, device=device, dtype=dtype)

    def _project(self, x: Tensor) -> Tensor:
        return self.norm(super()._project(x))
