"""How undecided a network is about a volume, read from a sample of its output while labels are made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .tta import known_activation, predictive_entropy

ENTROPY_SAMPLE_VOXELS = 2**16  # voxels that are read: a hippocampus crop whole, of a body one voxel in a few hundred


class PredictionEntropy:
    """Sum the predictive entropy over all voxels and divide it by the number of voxels that are not background.

    A network that knows what it sees is undecided only where its labels end: 0.3 to 0.4 for a hippocampus. On an image
    of something else it is undecided over far more voxels than it labels.

    Of a grid with more than 65,536 voxels each n-th along the last two axes is read, so that the cost stays the same.

    Args:
        shape: of the network's grid, (h, w, d).
        activation: ``"softmax"``, where class 0 is background, or ``"sigmoid"``, where background is no class at all.

    Raises:
        UsageError: another activation.
    """

    def __init__(self, shape: Sequence[int], activation: str) -> None:
        self.activation = known_activation(activation)
        self.step = max(1, math.ceil(math.sqrt(math.prod(shape) / ENTROPY_SAMPLE_VOXELS)))
        self.restart()

    def restart(self) -> None:
        """Forget what was added."""
        self.total, self.foreground = 0.0, 0

    def add(self, logits: Tensor) -> None:
        """Take in some planes, (1, K, h, W, D); a softmax of one class has no entropy and is left out."""
        if self.activation == "softmax" and logits.shape[1] < 2:
            return
        part = logits[..., :: self.step, :: self.step]
        inside = part.argmax(1) > 0 if self.activation == "softmax" else (part > 0).any(1)
        self.total += float(predictive_entropy(part, self.activation).double().sum())
        self.foreground += int(inside.sum())

    @property
    def per_labelled_voxel(self) -> float | None:
        """0 or more; None where all that was read is background."""
        return self.total / self.foreground if self.foreground else None
