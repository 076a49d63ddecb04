"""Centres of structures, from the probabilities that a network gives."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_centres(probabilities: Tensor) -> Tensor:
    """Average the voxel coordinates of each channel, weighted by its squared probabilities; differentiable.

    Squares count little where a network is undecided, which is most of a volume.

    Args:
        probabilities: (B, K, H, W, D) from 0 to 1.

    Returns:
        (B, K, 3) voxel coordinates; the middle of the volume for a channel of zeros.
    """
    weights = probabilities.square()
    total = weights.sum((2, 3, 4))
    centres = []
    for axis, others in enumerate(((3, 4), (2, 4), (2, 3))):
        line = torch.arange(weights.shape[2 + axis], dtype=weights.dtype, device=weights.device)
        middle = (len(line) - 1) / 2
        moment = (weights.sum(others) * (line - middle)).sum(2)
        centres.append(moment / total.clamp(min=1e-6) + middle)
    return torch.stack(centres, -1)
