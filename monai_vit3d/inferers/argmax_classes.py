"""The likeliest class of each voxel, found while the numbers lie in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.errors import ImageError

BLOCK = 2**15  # voxels at a time: numbers of one class, 128 KiB, are read twice and the best of them once more


def argmax_classes(values: Tensor) -> Tensor:
    """``values.argmax(0)``, many times faster on a CPU; NaN is not looked for.

    Args:
        values: (K, ...) floating point.

    Returns:
        (...) uint8, or int16 of more than 256 classes, int32 of more than 32768. Of equal values the first is meant, as
        argmax has it.
    """
    kind = torch.uint8 if len(values) <= 2**8 else torch.int16 if len(values) <= 2**15 else torch.int32
    if values.device.type != "cpu":
        return values.argmax(0).to(kind)
    found = torch.empty(values.shape[1:], dtype=kind)
    rows = max(1, BLOCK * len(found) // max(1, found.numel())) if found.ndim > 1 else BLOCK
    for part, labels in zip(values.split(rows, 1), found.split(rows)):
        _argmax_part(part, labels)
    return found


def require_finite_scores(values: Tensor) -> Tensor:
    """A network's numbers, as they are.

    Raises:
        ImageError: some are NaN or infinite: argmax would call them background.
    """
    if not bool(torch.isfinite(values).all()):
        raise ImageError("the network's answer is NaN or infinite. Look at the image, and at the weights.")
    return values


def _argmax_part(values: Tensor, labels: Tensor) -> None:
    """Fill ``labels``."""
    labels.zero_()
    best = values[0].clone(memory_format=torch.contiguous_format)
    above = torch.empty(best.shape, dtype=torch.bool)
    number = above.view(torch.uint8) if labels.dtype is torch.uint8 else torch.empty_like(labels)
    for index in range(1, len(values)):
        torch.gt(values[index], best, out=above)
        if number.dtype is not torch.uint8:
            number.copy_(above)
        # the index where it is above all before, else 0; indices grow, so that the largest is the last of them
        torch.maximum(labels, number.mul_(index), out=labels)
        torch.maximum(best, values[index], out=best)
