"""Transposed convolutions alone, as Primus decodes: Wald et al. 2025, "Primus: Enforcing Attention Usage for 3D
Medical Image Segmentation", arXiv:2503.01835."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import to_3tuple
from .stages import ChannelNorm, on_image, require_strides, resize, up_strides


class LightDecoder(nn.Module):
    """One transposed convolution for each doubling, with kernel = stride, and nothing between neighbouring tokens.

    The taps and the final tokens, each after a layer norm of its own, are concatenated and go up together; layer
    norms over channels and GELUs stand between the stages, and the last stage gives the logits (Primus, which reads
    the final tokens only). Where the patch is no power of two, an interpolation brings the logits to voxels. Without
    ``image_channels`` all that the logits know has gone through the tokens.

    Args:
        in_chans: channels of the image.
        embed_dim: channels of a patch grid.
        patch_size: voxels per token along each axis; axes may differ.
        num_classes: channels of the dense map.
        feature_size: half the channels at half resolution; they double with each coarser stage, as UNETR's.
        image_channels: channels at full resolution that get a 3x3x3 convolution of the image itself added, before a
            second one and a linear head. 0 leaves the image out.

    Raises:
        ValueError: a patch of 1 voxel, which leaves nothing to up-sample.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        patch_size: int | Sequence[int],
        num_classes: int,
        feature_size: int = 16,
        image_channels: int = 0,
    ) -> None:
        super().__init__()
        self.patch_size = to_3tuple(patch_size, "patch_size")
        strides = require_strides(self.patch_size)
        widths = [feature_size * 2**level for level in reversed(range(1, len(strides)))]  # coarsest stage first
        before = [embed_dim * len(strides), *widths]
        self.norms = nn.ModuleList(ChannelNorm(embed_dim) for _ in strides)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(a, b, kernel_size=s, stride=s), ChannelNorm(b), nn.GELU())
            for a, b, s in zip(before, widths, strides)
        )
        self.last = nn.ConvTranspose3d(before[-1], image_channels or num_classes, strides[-1], strides[-1])
        self.image_branch = self.head = None
        if image_channels:
            self.image_branch = nn.Conv3d(in_chans, image_channels, kernel_size=3, padding=1, bias=False)
            self.head = nn.Sequential(
                nn.GELU(),
                nn.Conv3d(image_channels, image_channels, kernel_size=3, padding=1),
                nn.GELU(),
                nn.Conv3d(image_channels, num_classes, kernel_size=1),
            )

    @staticmethod
    def num_maps(patch_size: int | Sequence[int]) -> int:
        """How many patch grids the decoder reads, the final one counted: one a stage, as many as UNETR's."""
        return len(up_strides(to_3tuple(patch_size, "patch_size")))

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Decode.

        Args:
            image: ``(B, C, H, W, D)``; without ``image_channels`` only its size and metadata are read.
            maps: ``num_maps`` patch grids ``(B, E, H', W', D')`` in block order, the last one the final tokens.

        Returns:
            ``(B, num_classes, H, W, D)``.

        Raises:
            ValueError: another number of maps.
        """
        if len(maps) != len(self.norms):
            raise ValueError(f"{len(maps)} patch grids came; patch_size={self.patch_size} needs {len(self.norms)}.")
        grids: list[Tensor] = []
        for i, norm in enumerate(self.norms):
            grids.append(norm(maps[i]))
        x = torch.cat(grids, dim=1)
        for stage in self.stages:
            x = stage(x)
        x = self.last(x)
        if self.image_branch is None or self.head is None:
            return on_image(x, image)
        x = resize(x, [image.shape[2], image.shape[3], image.shape[4]])
        return self.head(x + self.image_branch(image))
