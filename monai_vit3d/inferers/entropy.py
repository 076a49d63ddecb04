"""Measure how uncertain a network is about a volume, on a sample of its output while labels are made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .tta import known_activation, predictive_entropy

SAMPLE_VOXELS = 2**16  # that are read: all of a hippocampus crop, one voxel in a few hundred of a body


class PredictionEntropy:
    """Sum the predictive entropy over all voxels and divide it by the number of voxels that are not background.

    On an image like those it was trained on, a network is uncertain only at the borders of its labels: 0.3 to 0.4 for a
    hippocampus. On an image of something else it is uncertain about far more voxels than it labels.

    Of a grid with more than 65,536 voxels, each n-th along the last two axes is read, so that the cost stays the same.

    Args:
        shape: of the network's grid, (h, w, d).
        activation: ``"softmax"``, where class 0 is background, or ``"sigmoid"``, where background is not a class.

    Raises:
        UsageError: another activation.
    """

    def __init__(self, shape: Sequence[int], activation: str) -> None:
        self.activation = known_activation(activation)
        self.step = max(1, math.ceil(math.sqrt(math.prod(shape) / SAMPLE_VOXELS)))
        self.restart()

    def restart(self) -> None:
        """Forget all planes."""
        self.total, self.foreground = 0.0, 0

    def add(self, logits: Tensor) -> None:
        """Add some planes, (1, K, h, W, D); a softmax of one class has no entropy and is left out."""
        if self.activation == "softmax" and logits.shape[1] < 2:
            return
        sample = logits[..., :: self.step, :: self.step]
        is_foreground = sample.argmax(1) > 0 if self.activation == "softmax" else (sample > 0).any(1)
        self.total += float(predictive_entropy(sample, self.activation).double().sum())
        self.foreground += int(is_foreground.sum())

    @property
    def per_labelled_voxel(self) -> float | None:
        """Entropy per voxel that is not background, 0 or more; None if all are background."""
        return self.total / self.foreground if self.foreground else None
