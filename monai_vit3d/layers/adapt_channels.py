"""A patch kernel for another number of input channels."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_vit3d.data.errors import UsageError


def adapt_channels(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt a patch kernel to another number of input channels, as timm's ``adapt_input_conv`` does.

    Args:
        weight: ``(E, C, ...)``.
        in_chans: the new C. 1 sums the channels: a gray image then gives what it gives as RGB. Others
            repeat them in order and scale by ``C / in_chans``.

    Returns:
        ``(E, in_chans, ...)`` in the dtype of ``weight``.

    Raises:
        UsageError: no positive number of channels.
    """
    if in_chans < 1:
        raise UsageError(f"in_chans={in_chans}: expected 1 or more.")
    have = weight.shape[1]
    if in_chans == have:
        return weight
    if in_chans == 1:
        return weight.double().sum(1, keepdim=True).to(weight.dtype)
    order = torch.arange(in_chans, device=weight.device) % have
    return (weight.double()[:, order] * (have / in_chans)).to(weight.dtype)
