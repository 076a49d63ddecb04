"""Labels on a grid that needs no interpolation, and what interpolating labellers share: cells of 8 voxels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .inverse_mapping import InverseMapping

MIXED = -1  # the label of a cell whose voxels have several


class NoResampling:
    """Move labels to where their voxels go.

    Args:
        mapping: from the network's grid to the file's.
        decide: (K, ...) scores to (C, ...) labels.
        zero_labels: (C,), what ``decide`` gives for scores of zero.
        dtype: of the labels.
        classes: K.
    """

    def __init__(
        self,
        mapping: InverseMapping,
        decide: Callable[[Tensor], Tensor],
        zero_labels: Tensor,
        dtype: torch.dtype,
        classes: int,
    ) -> None:
        self.mapping, self.decide, self.zero_labels = mapping, decide, zero_labels
        self.network_labels = torch.empty((len(zero_labels), *mapping.before.source_shape), dtype=dtype)

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Keep the labels (C, h, w, d) of the planes from ``row`` on."""
        self.network_labels[:, row : row + labels.shape[1]] = labels

    def labels(self) -> Tensor:
        """Compute the labels on the grid before ``mapping.after``."""
        return self.mapping.before.apply(self.network_labels, self.zero_labels)


def equal_or_mixed(labels: Tensor, others: Tensor) -> Tensor:
    """Keep labels where both are the same; the rest becomes ``MIXED``."""
    return torch.where(labels == others, labels, MIXED)


def mixed_label_dtype(classes: int) -> torch.dtype:
    """Choose an integer type for as many labels and ``MIXED``."""
    return torch.int16 if classes < 2**15 else torch.int32


def interpolate_corners(
    values_at: Callable[[Tensor], Tensor], first_corner: Tensor, steps: list[Tensor], weights: list[Tensor]
) -> Tensor:
    """Interpolate linearly between the corners of cells, one axis after another.

    Args:
        values_at: gives the values at N indices.
        first_corner: (N,) index of each cell's first corner.
        steps: for each axis (N,), how far the next corner lies.
        weights: for each axis, of the next corner.
    """
    if not steps:
        return values_at(first_corner)
    low = interpolate_corners(values_at, first_corner, steps[1:], weights[1:])
    high = interpolate_corners(values_at, first_corner + steps[0], steps[1:], weights[1:])
    return torch.lerp(low, high, weights[0])
