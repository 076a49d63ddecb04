"""Patch embedding by a stack of convolutions: Xiao et al. 2021, "Early Convolutions Help Transformers See Better"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .patch_embed import PatchEmbed3D
from .pos_embed import GridShape


def halvings(patch_size: GridShape) -> list[GridShape]:
    """Return strides, finest first, whose product is the patch; each axis has a stride of 2 for each halving.

    Raises:
        ValueError: a patch size that is no power of two.
    """
    counts = [int(math.log2(p)) for p in patch_size]
    if any(2**n != p for n, p in zip(counts, patch_size)):
        raise ValueError(f"patch_size={patch_size}: a convolutional stem needs powers of two.")
    steps = max(counts)
    # axes with few halvings take theirs last, so that fine stages work in-plane when slices are thick
    strides = [tuple(2 if step >= steps - n else 1 for n in counts) for step in range(steps)]
    return strides  # type: ignore[return-value]


class ConvStem3D(PatchEmbed3D):
    """Patch embedding by 3x3x3 convolutions of stride 2 and a last 1x1x1 (arXiv:2106.14881, section 3).

    It replaces the one large convolution of :class:`PatchEmbed3D` (``embed_layer=ConvStem3D``), gives as many
    tokens, and learns faster on few data. Each convolution doubles the channels, up to ``embed_dim``.

    Args:
        img_size: input size in ``(H, W, D)``, divisible by ``patch_size``.
        patch_size: voxels per token along each axis, powers of two.
        in_chans: number of input channels.
        embed_dim: width of a token.
        bias: whether the last projection has a bias.
        options: the other keywords of :class:`PatchEmbed3D`.

    Raises:
        ValueError: a patch size that is no power of two, or as :class:`PatchEmbed3D`.
    """

    image_kernels = ("stem.0.weight",)
    patch_is_of = "a convolutional stem"

    def __init__(
        self,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_chans: int = 1,
        embed_dim: int = 768,
        bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, bias, **options)
        factory: dict[str, Any] = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
        strides = halvings(self.patch_size)
        widths = [max(embed_dim >> (len(strides) - i), 1) for i in range(len(strides))]
        layers: list[nn.Module] = []
        for before, width, stride in zip([in_chans, *widths], widths, strides):
            layers += [
                nn.Conv3d(before, width, 3, stride=stride, padding=1, bias=False, **factory),
                nn.InstanceNorm3d(width, affine=True, **factory),
                nn.GELU(),
            ]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv3d(widths[-1] if widths else in_chans, embed_dim, 1, bias=bias, **factory)

    def _project(self, x: Tensor) -> Tensor:
        return self.proj(self.stem(x)).permute(0, 2, 3, 4, 1)
