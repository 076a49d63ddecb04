"""What a pretraining task needs of its backbone."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from ..data.errors import UsageError


def check_patches_are_separate(backbone: nn.Module, allow_overlap: bool) -> None:
    """Refuse a patch embedding whose tokens see voxels of other patches: visible tokens would tell of hidden ones.

    The embedding is tried, not its type: with not-a-number in the middle patch of a 3x3x3 grid, that token alone
    may turn into it. A copy with weights of 0 is tried, on the CPU: the backbone's weights play no part.

    Args:
        backbone: a network that keeps the contract of :class:`monai_vit3d.networks.VisionTransformer3D`.
        allow_overlap: let it pass nevertheless.

    Raises:
        UsageError: patches overlap, as they do for :class:`monai_vit3d.layers.ConvStem3D`, or share statistics, as
            they do behind an instance norm.
    """
    if allow_overlap:
        return
    embed = deepcopy(backbone.patch_embed).to_empty(device="cpu").float().train()
    h, w, d = embed.feat_ratio()
    embed.set_input_size((3 * h, 3 * w, 3 * d))
    with torch.no_grad():
        for tensor in [*embed.parameters(), *embed.buffers()]:
            tensor.zero_()
        volume = torch.zeros(1, int(backbone.in_chans), 3 * h, 3 * w, 3 * d)
        volume[..., h : 2 * h, w : 2 * w, d : 2 * d] = torch.nan
        told = embed(volume)[0].isnan().any(-1)
    if told.nonzero().flatten().tolist() != [13]:
        name = type(backbone.patch_embed).__name__
        raise UsageError(
            f"patch embedding {name}: tokens see voxels of other patches, so visible tokens tell of hidden ones; "
            "separate patches are needed. Use PatchEmbed3D, or pass allow_overlap=True to train nevertheless."
        )
