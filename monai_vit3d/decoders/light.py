"""Light decoder: transposed convolutions alone, as Primus decodes.

Wald et al. 2025, "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation", arXiv:2503.01835.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_vit3d.layers import to_3tuple

from .stages import (
    ChannelNorm,
    last_layer,
    on_image,
    recomputed,
    require_counts,
    require_maps,
    require_strides,
    resize_like,
    stage_maps,
    stage_widths,
)


class LightDecoder(nn.Module):
    """One transposed convolution for each doubling, with kernel = stride, and nothing between neighbouring tokens.

    The taps and the final tokens, each after a layer norm of its own, are concatenated and go up together; layer
    norms over channels and GELUs stand between the stages, and the last stage gives the logits (Primus, which reads
    the final tokens only), or with ``image_channels`` features that meet the image's. Where the patch is no power of
    two, an interpolation brings what the last stage gives to voxels. Without ``image_channels`` all that the logits
    know has gone through the tokens.

    All places of a kernel start with the same weights, so that a patch's voxels start with one value (ICNR: Aitken et
    al. 2017, "Checkerboard artifact free sub-pixel convolution", arXiv:1707.02937). With weights drawn for each place
    the voxels of a patch pull their token in random directions that nearly cancel: in the hippocampus bundle the first
    gradient that reached the backbone was 30 times smaller, and training stayed at background for 300 steps.

    Args:
        in_chans: channels of the image.
        embed_dim: channels of a patch grid.
        patch_size: voxels per token along each axis; axes may differ.
        num_classes: channels of the dense map.
        feature_size: half the channels at half resolution; they double with each coarser stage, as UNETR's.
        image_channels: channels at full resolution that get a 3x3x3 convolution of the image itself added, before a
            second one and a linear head. 0 leaves the image out.

    Raises:
        ValueError: a patch of 1 voxel, which leaves nothing to up-sample; channels below 1, or image channels below 0.
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
        require_counts(1, in_chans=in_chans, embed_dim=embed_dim, num_classes=num_classes, feature_size=feature_size)
        require_counts(0, image_channels=image_channels)
        self.patch_size = to_3tuple(patch_size, "patch_size")
        strides = require_strides(self.patch_size)
        widths = stage_widths(strides, feature_size)
        before = [embed_dim * len(strides), *widths]
        self.norms = nn.ModuleList(ChannelNorm(embed_dim) for _ in strides)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(a, b, kernel_size=s, stride=s), ChannelNorm(b), nn.GELU())
            for a, b, s in zip(before, widths, strides)
        )
        self.last: nn.Module = nn.ConvTranspose3d(before[-1], image_channels or num_classes, strides[-1], strides[-1])
        _start_alike(self)
        self.grad_checkpointing = False
        self.image_branch = self.head = None
        if image_channels:
            self.image_branch = nn.Conv3d(in_chans, image_channels, kernel_size=3, padding=1, bias=False)
            self.head = nn.Sequential(
                nn.GELU(),
                nn.Conv3d(image_channels, image_channels, kernel_size=3, padding=1),
                nn.GELU(),
                nn.Conv3d(image_channels, num_classes, kernel_size=1),
            )

    num_maps = staticmethod(stage_maps)

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
        require_maps(maps, len(self.norms), self.patch_size)
        grids: list[Tensor] = []
        for i, norm in enumerate(self.norms):
            grids.append(norm(maps[i]))
        x = torch.cat(grids, dim=1)
        for stage in self.stages:
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108
                x = recomputed(stage, x)
            else:
                x = stage(x)
        x = self.last(x)
        if self.image_branch is None or self.head is None:
            return on_image(x, image)
        x = resize_like(x, image)
        x = x + self.image_branch(image)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return recomputed(self.head, x)
        return self.head(x)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.last if self.head is None else self.head[-1]

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a newly initialised one.

        Args:
            num_classes: channels of the dense map.

        Raises:
            ValueError: fewer than 1.
        """
        new = last_layer(self.get_classifier(), num_classes)
        if self.head is not None:
            self.head[-1] = new
            return
        self.last = new
        _start_alike(new)


def _start_alike(decoder: nn.Module) -> None:
    """Give every place of a transposed convolution's kernel the initial weights of its first place."""
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, nn.ConvTranspose3d):
                module.weight.copy_(module.weight[:, :, :1, :1, :1].expand_as(module.weight))
