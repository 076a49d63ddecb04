"""Numbers of each class on the network's grid to labels on the file's: interpolated only where labels meet.

MONAI's ``Invertd(nearest_interp=False)`` interpolates all classes on the whole of the file's grid before the labels are
taken. Between 8 voxels of one label there is nothing to interpolate: a mean with weights of numbers of which the same
one is the largest has it as the largest, too, and the mean of numbers above a threshold is above it. What is left are
the borders between labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.errors import UsageError
from .argmax_classes import argmax_classes
from .axis_aligned import AxisAligned
from .inverse_mapping import InverseMapping
from .label_cells import NoResampling
from .rotated import Rotated


def argmax(values: Tensor) -> Tensor:
    """The likeliest class, (K, ...) to (1, ...)."""
    return argmax_classes(values)[None]


class LabelInverter:
    """Takes the planes of a network's numbers from the first to the last, and has the file's labels then.

    Where the axes of the two grids are those of each other, two planes are held at a time; where they are turned, the
    voxels around the borders between labels.

    Args:
        way: see :func:`~monai_vit3d.inferers.inverse_mapping`.
        decide: (K, ...) numbers to (C, ...) whole numbers of 0 or above, each voxel by itself. The numbers of which it
            gives the same answer have to be convex: those whose k-th is the largest, or is above a threshold.

    Example:
        >>> inverter = LabelInverter(trace_inverse(image, preprocessing, file_shape))
        >>> for planes in logits.split(8, dim=1):  # (K, h, w, d)
        ...     inverter.feed(planes)
        >>> labels = inverter.labels()  # (1, H, W, D)
    """

    def __init__(self, way: InverseMapping, decide: Callable[[Tensor], Tensor] = argmax) -> None:
        self.way, self.decide = way, decide
        self.restart()

    def restart(self) -> None:
        """Forget the planes that came: the next one is the first."""
        self.row = 0
        self._grid: NoResampling | AxisAligned | Rotated | None = None

    def feed(self, planes: Tensor) -> Tensor:
        """Take the next planes.

        Args:
            planes: (K, h, w, d); they may change afterwards.

        Returns:
            (C, h, w, d), their labels on the network's grid.
        """
        planes = planes.detach().to("cpu", torch.float32)
        labels = self.decide(planes)
        if self._grid is None:
            zeros = self.decide(planes.new_zeros(len(planes), 1)).flatten()
            kind = (
                NoResampling if self.way.lines is self.way.xform is None else AxisAligned if self.way.lines else Rotated
            )
            self._grid = kind(self.way, self.decide, zeros, labels.dtype, len(planes))
        self._grid.feed(self.row, planes, labels)
        self.row += planes.shape[1]
        return labels

    def labels(self) -> Tensor:
        """(C, H, W, D) on the file's grid, after the last planes.

        Raises:
            UsageError: planes are missing.
        """
        if self._grid is None or self.row != self.way.before.source[0]:
            raise UsageError(f"{self.row} planes were fed of {self.way.before.source[0]}; feed() the others first.")
        return self.way.after.take(self._grid.labels(), self._grid.zeros)
