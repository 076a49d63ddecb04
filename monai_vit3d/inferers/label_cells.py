"""Cells of a grid, 8 voxels each: whether one label holds for all of a cell, and values in between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .inverse_mapping import InverseMapping

MIXED = -1  # neighbours differ


class NoResampling:
    """No interpolation: labels go where the voxels go."""

    def __init__(
        self, way: InverseMapping, decide: Callable[[Tensor], Tensor], zeros: Tensor, dtype: torch.dtype, classes: int
    ) -> None:
        self.way, self.decide, self.zeros = way, decide, zeros
        self.found = torch.empty((len(zeros), *way.before.source), dtype=dtype)

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Keep the labels."""
        self.found[:, row : row + labels.shape[1]] = labels

    def labels(self) -> Tensor:
        """On the grid before ``way.after``."""
        return self.way.before.take(self.found, self.zeros)


def equal_or_mixed(labels: Tensor, others: Tensor) -> Tensor:
    """Labels where both are the same."""
    return torch.where(labels == others, labels, MIXED)


def label_dtype(classes: int) -> torch.dtype:
    """An integer type for as many labels and MIXED."""
    return torch.int16 if classes < 2**15 else torch.int32


def interpolate_corners(
    values: Callable[[Tensor], Tensor], place: Tensor, steps: list[Tensor], weights: list[Tensor]
) -> Tensor:
    """Linear interpolation between the corners of cells, one axis after another.

    Args:
        values: of N indices.
        place: (N,) index of each cell's first corner.
        steps: for each axis (N,), how far the next corner lies.
        weights: for each axis, of the next corner.
    """
    if not steps:
        return values(place)
    first = interpolate_corners(values, place, steps[1:], weights[1:])
    return torch.lerp(first, interpolate_corners(values, place + steps[0], steps[1:], weights[1:]), weights[0])
