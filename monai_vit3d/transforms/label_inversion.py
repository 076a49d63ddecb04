"""Resample class scores to a label map on the file grid, interpolating only at label borders.

MONAI's ``Invertd(nearest_interp=False)`` interpolates all classes on the whole of the file's grid before the labels are
taken. Between 8 voxels of one label there is nothing to interpolate: a weighted mean of scores of which the same one is
the largest has it as the largest, too, and the mean of scores above a threshold is above it. What is left are the
borders between labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from monai_vit3d.data.errors import UsageError

from .argmax_classes import argmax
from .axis_aligned import AxisAligned
from .inverse_mapping import InverseMapping
from .label_cells import NoResampling
from .rotated import RotatedGrid


class LabelInverter:
    """Take the planes of a network's scores from first to last, and give the labels on the file's grid.

    If the axes of the two grids are parallel, two planes are held at a time; if not, the voxels around label borders.

    Args:
        mapping: see :func:`~monai_vit3d.transforms.trace_inverse`.
        decide: (K, ...) scores to (C, ...) whole numbers of 0 or above, each voxel by itself. All scores with one
            answer must form a convex set, as those whose k-th is the largest, or above a threshold, do.

    Example:
        >>> inverter = LabelInverter(trace_inverse(image, preprocessing, file_shape))
        >>> for planes in logits.split(8, dim=1):  # (K, h, w, d)
        ...     inverter.feed(planes)
        >>> labels = inverter.labels()  # (1, H, W, D)
    """

    def __init__(self, mapping: InverseMapping, decide: Callable[[Tensor], Tensor] = argmax) -> None:
        self.mapping, self.decide = mapping, decide
        self.restart()

    def restart(self) -> None:
        """Forget all planes: the next one is the first."""
        self.row = 0
        self._labeller: NoResampling | None = None

    def feed(self, planes: Tensor) -> Tensor:
        """Process the next planes.

        Args:
            planes: (K, h, w, d); they may change afterwards.

        Returns:
            (C, h, w, d), their labels on the network's grid.
        """
        planes = planes.detach().to("cpu", torch.float32)
        labels = self.decide(planes)
        if self._labeller is None:
            zero_labels = self.decide(planes.new_zeros(len(planes), 1)).flatten()
            self._labeller = self._kind()(self.mapping, self.decide, zero_labels, labels.dtype, len(planes))
        self._labeller.feed(self.row, planes, labels)
        self.row += planes.shape[1]
        return labels

    def labels(self) -> Tensor:
        """Compute the labels (C, H, W, D) on the file's grid, after the last planes.

        Raises:
            UsageError: planes are missing.
        """
        count = self.mapping.before.source_shape[0]
        if self._labeller is None or self.row != count:
            raise UsageError(f"{self.row} planes were fed of {count}; feed() the others first.")
        return self.mapping.after.apply(self._labeller.labels(), self._labeller.zero_labels)

    def _kind(self) -> type[NoResampling]:
        if self.mapping.axis_interps:
            return AxisAligned
        return NoResampling if self.mapping.xform is None else RotatedGrid
