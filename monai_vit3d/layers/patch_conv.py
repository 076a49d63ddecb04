"""A strided convolution over patches that do not overlap, computed the faster of two ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed_patches(x: Tensor, weight: Tensor, bias: Tensor | None, patch_size: tuple[int, int, int]) -> Tensor:
    """Convolve with a stride equal to the kernel's size, by the faster of two ways.

    One matrix product over non-overlapping patches, except in float32 on a CPU, where the convolution itself is
    faster (benchmarks/patch_embed.py measures both).

    Args:
        x: ``(B, C, H, W, D)``; voxels after the last whole patch of an axis are left out, as by a convolution.
        weight: ``(E, C, h, w, d)``, as an ``nn.Conv3d`` holds it.
        bias: ``(E,)`` or None.
        patch_size: the patch ``(h, w, d)``, in voxels.

    Returns:
        ``(B, E, H', W', D')``; the product's has its channels last in memory.
    """
    h, w, d = patch_size
    if x.device.type == "cpu" and x.dtype == torch.float32:
        reduced = False
        if not torch.jit.is_scripting():
            reduced = torch.is_autocast_enabled("cpu")
        if not reduced:
            return F.conv3d(x, weight, bias, stride=[h, w, d])
    # a bf16 Conv3d with kernel == stride has no fast kernel on CPUs, nor a good one on GPUs; the product has both
    B, C = x.shape[0], x.shape[1]
    gh, gw, gd = x.shape[2] // h, x.shape[3] // w, x.shape[4] // d
    x = x[:, :, : gh * h, : gw * w, : gd * d].reshape(B, C, gh, h, gw, w, gd, d).permute(0, 2, 4, 6, 1, 3, 5, 7)
    tokens = F.linear(x.reshape(B, gh, gw, gd, C * h * w * d), weight.flatten(1), bias)
    return tokens.permute(0, 4, 1, 2, 3)


# A leaf for torch.fx: its branches depend on the input, which a symbolic trace does not know.
torch.fx.wrap("embed_patches")


class PatchConv3d(nn.Conv3d):
    """``nn.Conv3d`` that goes through :func:`embed_patches` where its patches neither overlap nor leave gaps.

    It is called as a module and holds what ``nn.Conv3d`` holds, so that hooks, pruning, weight norm, adapters, offload
    and sharding act on it as on any convolution. Constructed as ``nn.Conv3d``; with padding, dilation, groups or
    another stride than the kernel it is one.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W, D)`` to ``(B, E, H', W', D')``."""
        plain = self.groups == 1 and self.dilation == (1, 1, 1) and self.stride == self.kernel_size
        if not plain or isinstance(self.padding, str) or self.padding != (0, 0, 0):
            return self._conv_forward(input, self.weight, self.bias)
        kernel = self.kernel_size
        return embed_patches(input, self.weight, self.bias, (kernel[0], kernel[1], kernel[2]))
