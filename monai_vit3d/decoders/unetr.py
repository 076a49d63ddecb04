"""UNETR decoder: Hatamizadeh et al. 2022, "UNETR: Transformers for 3D Medical Image Segmentation", arXiv:2103.10504."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from monai_vit3d.layers import to_3tuple
from monai_vit3d.layers.pos_embed import GridShape

from .stages import (
    recomputed,
    require_counts,
    require_maps,
    require_strides,
    resize_like,
    resize_trilinear,
    stage_maps,
    stage_widths,
)


class UNETRDecoder(nn.Module):
    """Convolutional decoder over intermediate tokens, with MONAI's UNETR blocks.

    A patch of 16 makes the four stages of the paper; a patch of 8 makes three, and so on. Where the patch is no
    power of two, the decoder works on the nearest grid that is, and a last interpolation brings it to voxels.

    Args:
        in_chans: channels of the image.
        embed_dim: channels of a patch grid.
        patch_size: voxels per token along each axis; axes may differ.
        num_classes: channels of the dense map.
        feature_size: channels at full resolution; they double with each coarser stage.
        norm_name: MONAI's name of the norm.
        conv_block: convolutions between the up-samplings of a tap.
        res_block: residual blocks instead of plain ones.
        image_levels: how many of the finest levels get features straight from the image. 1, the full resolution, is
            the paper; each further one adds a strided convolution block whose output joins the tap's, which makes
            a convolutional U-Net with the transformer in its middle.
        deep_supervision: in training, also return the maps of the coarser stages, interpolated to full size: a list,
            the finest first, for MONAI's ``DeepSupervisionLoss``.

    Raises:
        ValueError: a patch of 1 voxel, which leaves nothing to up-sample; channels below 1, or more image levels than
            stages.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        patch_size: int | Sequence[int],
        num_classes: int,
        feature_size: int = 16,
        norm_name: str | tuple = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        image_levels: int = 1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        require_counts(1, in_chans=in_chans, embed_dim=embed_dim, num_classes=num_classes, feature_size=feature_size)
        self.patch_size = to_3tuple(patch_size, "patch_size")
        strides = require_strides(self.patch_size)
        if not 1 <= image_levels <= len(strides):
            stages = f"patch_size={self.patch_size} makes {len(strides)} stages"
            raise ValueError(f"image_levels={image_levels}; {stages}: expected 1 to {len(strides)}.")
        self.scale = tuple(math.prod(s[axis] for s in strides) for axis in range(3))
        widths = [*stage_widths(strides, feature_size), feature_size]  # coarsest stage first
        blocks: dict[str, Any] = {"spatial_dims": 3, "kernel_size": 3, "norm_name": norm_name, "res_block": res_block}
        self.image_branch = UnetrBasicBlock(in_channels=in_chans, out_channels=feature_size, stride=1, **blocks)
        self.image_downs = nn.ModuleList(
            UnetrBasicBlock(in_channels=widths[-i], out_channels=widths[-i - 1], stride=strides[-i], **blocks)
            for i in range(1, image_levels)
        )
        self.tap_branches = nn.ModuleList(
            _tap_branch(embed_dim, width, strides[: i + 1], {**blocks, "conv_block": conv_block})
            for i, width in enumerate(widths[:-1])
        )
        self.up_blocks = nn.ModuleList(
            UnetrUpBlock(in_channels=before, out_channels=width, upsample_kernel_size=stride, **blocks)
            for before, width, stride in zip([embed_dim, *widths], widths, strides)
        )
        self.head = UnetOutBlock(spatial_dims=3, in_channels=feature_size, out_channels=num_classes)
        coarse = widths[:-1][::-1] if deep_supervision else []
        self.grad_checkpointing = False
        self.coarse_heads = nn.ModuleList(UnetOutBlock(3, width, num_classes) for width in coarse)

    num_maps = staticmethod(stage_maps)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Decode.

        Args:
            image: ``(B, C, H, W, D)``.
            maps: ``num_maps`` patch grids ``(B, E, H', W', D')`` in block order, the last one the final tokens.

        Returns:
            ``(B, num_classes, H, W, D)``; with ``deep_supervision`` in training a list of such maps, finest first, or
            in TorchScript ``(B, stages, num_classes, H, W, D)``.

        Raises:
            ValueError: another number of maps.
        """
        require_maps(maps, len(self.up_blocks), self.patch_size)
        grid = maps[-1].shape
        work = [grid[2] * self.scale[0], grid[3] * self.scale[1], grid[4] * self.scale[2]]
        image_at_work = resize_trilinear(image, work)
        levels: list[Tensor] = []  # finest first
        if self.grad_checkpointing and not torch.jit.is_scripting():
            levels.append(recomputed(self.image_branch, image_at_work))
        else:
            levels.append(self.image_branch(image_at_work))
        for down in self.image_downs:
            levels.append(down(levels[-1]))
        skips: list[Tensor] = []  # coarsest first, as the branches and the stages stand; the earliest tap is the finest
        for i, branch in enumerate(self.tap_branches):
            skip = branch(maps[len(self.tap_branches) - 1 - i])
            level = len(self.tap_branches) - i
            skips.append(skip + levels[level] if level < len(levels) else skip)
        skips.append(levels[0])
        x = maps[-1]
        outputs: list[Tensor] = []
        for i, up in enumerate(self.up_blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = recomputed(up, x, skips[i])
            else:
                x = up(x, skips[i])
            outputs.append(x)
        out = resize_like(self.head(x), image)
        if not self.training or len(self.coarse_heads) == 0:
            return out
        stack = [out]
        for i, head in enumerate(self.coarse_heads):
            stack.append(resize_like(head(outputs[len(outputs) - 2 - i]), image))
        if not torch.jit.is_scripting():  # which has one type for all answers
            return cast(Any, stack)
        return torch.stack(stack, dim=1)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head.conv.conv

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a newly initialised one.

        Args:
            num_classes: channels of the dense map.

        Raises:
            ValueError: fewer than 1.
        """
        require_counts(1, num_classes=num_classes)
        for heads, name in ((self, "head"), *((self.coarse_heads, str(i)) for i in range(len(self.coarse_heads)))):
            old = getattr(heads, name).conv.conv
            new = UnetOutBlock(3, old.in_channels, num_classes).to(old.weight.device, old.weight.dtype)
            setattr(heads, name, new.train(old.training))


def _tap_branch(embed_dim: int, width: int, strides: list[GridShape], blocks: dict) -> nn.Module:
    """Build the layers from a patch grid to the level after ``strides``: one MONAI block a run of equal factors."""
    runs = [(stride, len(list(same))) for stride, same in groupby(strides)]
    parts = [
        UnetrPrUpBlock(
            in_channels=width if i else embed_dim,
            out_channels=width,
            num_layer=count - 1,
            stride=1,
            upsample_kernel_size=stride,
            **blocks,
        )
        for i, (stride, count) in enumerate(runs)
    ]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)
