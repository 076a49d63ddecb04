"""DPT decoder: Ranftl et al. 2021, "Vision Transformers for Dense Prediction", arXiv:2103.13413."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_vit3d.layers import to_3tuple
from monai_vit3d.layers.pos_embed import GridShape

from .stages import (
    ChannelNorm,
    last_layer,
    level_strides,
    on_image,
    recomputed,
    require_counts,
    require_maps,
    require_strides,
    resize_like,
    stage_maps,
)


class DPTDecoder(nn.Module):
    """Reassembled taps, fused from coarse to fine by residual convolution units.

    Each tap becomes one level: a 1x1x1 convolution, a transposed one with kernel and stride equal to the level's
    factor, and a 3x3x3 convolution to a common width. The final tokens make the coarsest level (the patch grid), the
    earliest tap the finest (half the image's resolution). Fusion goes from coarse to fine (the paper's figure 1): up,
    add the level's residual unit, a second unit. The head, a convolution and a linear one, works at the finest level;
    an interpolation brings the logits to voxels. The image itself is not read. Differences to the paper: no level is
    coarser than the patch grid, and layer norms over channels stand where it has batch norms.

    Args:
        in_chans: channels of the image.
        embed_dim: channels of a patch grid.
        patch_size: voxels per token along each axis; axes may differ.
        num_classes: channels of the dense map.
        feature_size: half the common width, which is UNETR's at half resolution.

    Raises:
        ValueError: a patch of 1 voxel, which leaves nothing to up-sample; channels below 1.
    """

    def __init__(
        self, in_chans: int, embed_dim: int, patch_size: int | Sequence[int], num_classes: int, feature_size: int = 16
    ) -> None:
        super().__init__()
        require_counts(1, in_chans=in_chans, embed_dim=embed_dim, num_classes=num_classes, feature_size=feature_size)
        self.patch_size = to_3tuple(patch_size, "patch_size")
        strides, width = require_strides(self.patch_size), 2 * feature_size
        coarsest = feature_size * 2 ** (len(strides) - 1)
        self.reassemble = nn.ModuleList(
            _reassemble(embed_dim, max(width, coarsest >> i), stride, width)
            for i, stride in enumerate(level_strides(strides))
        )
        self.level_units = nn.ModuleList(
            ResidualConvUnit(width) for _ in strides[1:]
        )  # the coarsest has nothing to meet
        self.fused_units = nn.ModuleList(ResidualConvUnit(width) for _ in strides)
        self.grad_checkpointing = False
        self.head = nn.Sequential(
            nn.Conv3d(width, width, kernel_size=3, padding=1),
            ChannelNorm(width),
            nn.ReLU(),
            nn.Conv3d(width, num_classes, kernel_size=1),
        )

    num_maps = staticmethod(stage_maps)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Decode.

        Args:
            image: ``(B, C, H, W, D)``; its size and metadata are read.
            maps: ``num_maps`` patch grids ``(B, E, H', W', D')`` in block order, the last one the final tokens.

        Returns:
            ``(B, num_classes, H, W, D)``.

        Raises:
            ValueError: another number of maps.
        """
        needed = len(self.reassemble)
        require_maps(maps, needed, self.patch_size)
        levels: list[Tensor] = []  # coarsest first
        for i, reassemble in enumerate(self.reassemble):
            levels.append(reassemble(maps[needed - 1 - i]))
        for i, unit in enumerate(self.level_units):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                levels[i + 1] = recomputed(unit, levels[i + 1])
            else:
                levels[i + 1] = unit(levels[i + 1])
        x = levels[0]
        for i, unit in enumerate(self.fused_units):
            level = levels[i] if i == 0 else resize_like(x, levels[i]) + levels[i]
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108
                x = recomputed(unit, level)
            else:
                x = unit(level)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108
            x = recomputed(self.head, x)
        else:
            x = self.head(x)
        return on_image(x, image)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head[-1]

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a newly initialised one.

        Args:
            num_classes: channels of the dense map.

        Raises:
            ValueError: fewer than 1.
        """
        self.head[-1] = last_layer(self.head[-1], num_classes)


class ResidualConvUnit(nn.Module):
    """Two 3x3x3 convolutions, each behind a rectifier, around which the input is added (the paper's figure 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [(nn.ReLU(), nn.Conv3d(width, width, kernel_size=3, padding=1), ChannelNorm(width)) for _ in range(2)]
        self.body = nn.Sequential(*parts[0], *parts[1])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit; the shape ``(B, C, H, W, D)`` stays."""
        return x + self.body(x)


def _reassemble(embed_dim: int, middle: int, stride: GridShape, width: int) -> nn.Sequential:
    """Build the layers from a patch grid to its level."""
    parts: list[nn.Module] = [nn.Conv3d(embed_dim, middle, kernel_size=1)]
    if stride != (1, 1, 1):
        parts.append(nn.ConvTranspose3d(middle, middle, kernel_size=stride, stride=stride))
    return nn.Sequential(*parts, nn.Conv3d(middle, width, kernel_size=3, padding=1, bias=False))
