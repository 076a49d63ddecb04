"""Simple feature pyramid: Li et al. 2022, "Exploring Plain Vision Transformer Backbones", arXiv:2203.16527."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_vit3d.layers import to_3tuple
from monai_vit3d.layers.pos_embed import GridShape

from .stages import (
    ChannelNorm,
    last_layer,
    on_image,
    recomputed,
    require_counts,
    require_maps,
    require_strides,
    resize_like,
    stage_widths,
)


class PyramidDecoder(nn.Module):
    """ViTDet's feature pyramid from the final tokens alone, summed as in a panoptic FPN.

    One level for each doubling of the patch grid but the last, so that the finest has half the image's resolution.
    Each is made from the final tokens by its own chain of transposed convolutions, then a 1x1x1 and a 3x3x3
    convolution with layer norms over channels, as in the paper (section 3). As in Kirillov et al. 2019,
    arXiv:1901.02446, all are up-sampled and added; a linear head classifies at the finest level, and an interpolation
    brings the logits to voxels. The image itself is not read.

    Args:
        in_chans: channels of the image.
        embed_dim: channels of a patch grid.
        patch_size: voxels per token along each axis; axes may differ.
        num_classes: channels of the dense map.
        feature_size: half the channels of a level, which are UNETR's at half resolution.

    Raises:
        ValueError: a patch of 1 voxel, which leaves nothing to up-sample; channels below 1.
    """

    def __init__(
        self, in_chans: int, embed_dim: int, patch_size: int | Sequence[int], num_classes: int, feature_size: int = 16
    ) -> None:
        super().__init__()
        require_counts(1, in_chans=in_chans, embed_dim=embed_dim, num_classes=num_classes, feature_size=feature_size)
        self.patch_size = to_3tuple(patch_size, "patch_size")
        strides = require_strides(self.patch_size)
        widths = stage_widths(strides, feature_size)  # of the chains
        self.levels = nn.ModuleList(
            _level(embed_dim, widths[:i], strides[:i], 2 * feature_size) for i in range(len(strides))
        )
        self.grad_checkpointing = False
        self.head: nn.Module = nn.Conv3d(2 * feature_size, num_classes, kernel_size=1)

    @staticmethod
    def num_maps(patch_size: int | Sequence[int]) -> int:
        """Return how many patch grids the decoder reads: one, the final one."""
        return 1

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Decode.

        Args:
            image: ``(B, C, H, W, D)``; its size and metadata are read.
            maps: one patch grid ``(B, E, H', W', D')``, the final tokens.

        Returns:
            ``(B, num_classes, H, W, D)``.

        Raises:
            ValueError: another number of maps.
        """
        require_maps(maps, 1, self.patch_size)
        total = maps[0]
        for i, level in enumerate(self.levels):  # coarsest first
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = recomputed(level, maps[0])
            else:
                x = level(maps[0])
            total = x if i == 0 else resize_like(total, x) + x
        return on_image(self.head(F.gelu(total)), image)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a newly initialised one.

        Args:
            num_classes: channels of the dense map.

        Raises:
            ValueError: fewer than 1.
        """
        self.head = last_layer(self.head, num_classes)


def _level(embed_dim: int, widths: list[int], strides: list[GridShape], width: int) -> nn.Sequential:
    """Build the layers from the patch grid up by ``strides``, to ``width`` channels."""
    parts: list[nn.Module] = []
    for i, (before, after, stride) in enumerate(zip([embed_dim, *widths], widths, strides)):
        if i:
            parts += [ChannelNorm(before), nn.GELU()]
        parts.append(nn.ConvTranspose3d(before, after, kernel_size=stride, stride=stride))
    parts += [nn.Conv3d(widths[-1] if widths else embed_dim, width, kernel_size=1), ChannelNorm(width)]
    parts += [nn.Conv3d(width, width, kernel_size=3, padding=1), ChannelNorm(width)]
    return nn.Sequential(*parts)
