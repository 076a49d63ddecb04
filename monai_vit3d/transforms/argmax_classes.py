"""The class of the highest score at each voxel, found while the scores lie in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_vit3d.data.errors import ImageError

BLOCK_VOXELS = 2**15  # at a time: scores of one class, 128 KiB, are read twice and the best of them once more


def argmax(logits: Tensor) -> Tensor:
    """Compute the class of the highest score, (K, ...) to (1, ...); see :func:`argmax_classes`."""
    return argmax_classes(logits)[None]


def argmax_classes(logits: Tensor) -> Tensor:
    """Compute ``logits.argmax(0)``, many times faster on a CPU; NaN is not looked for.

    Args:
        logits: (K, ...) floating point.

    Returns:
        (...) uint8, or int16 for more than 256 classes, int32 for more than 32768. The first of equal scores wins, as
        for argmax.
    """
    dtype = torch.uint8 if len(logits) <= 2**8 else torch.int16 if len(logits) <= 2**15 else torch.int32
    if logits.device.type != "cpu":
        return logits.argmax(0).to(dtype)
    labels = torch.empty(logits.shape[1:], dtype=dtype)
    rows = max(1, BLOCK_VOXELS * len(labels) // max(1, labels.numel())) if labels.ndim > 1 else BLOCK_VOXELS
    for block, block_labels in zip(logits.split(rows, 1), labels.split(rows)):
        _fill_argmax(block, block_labels)
    return labels


def require_finite_scores(logits: Tensor) -> Tensor:
    """Return a network's output as it is.

    Raises:
        ImageError: some of it is NaN or infinite: argmax would call it background.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ImageError("the network's answer is NaN or infinite. Look at the image, and at the weights.")
    return logits


def _fill_argmax(logits: Tensor, labels: Tensor) -> None:
    """Write the class of the highest score to ``labels``."""
    labels.zero_()
    best = logits[0].clone(memory_format=torch.contiguous_format)
    is_higher = torch.empty(best.shape, dtype=torch.bool)
    candidate = is_higher.view(torch.uint8) if labels.dtype is torch.uint8 else torch.empty_like(labels)
    for index in range(1, len(logits)):
        torch.gt(logits[index], best, out=is_higher)
        if candidate.dtype is not torch.uint8:
            candidate.copy_(is_higher)
        # the index where the score is above all before, else 0; indices grow, so that the largest is the last of them
        torch.maximum(labels, candidate.mul_(index), out=labels)
        torch.maximum(best, logits[index], out=best)
