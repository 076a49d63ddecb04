"""Labels on a grid that is rotated against the network's: scores are interpolated around label borders alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .inverse_mapping import InverseMapping
from .label_cells import MIXED, NoResampling, equal_or_mixed, interpolate_corners, mixed_label_dtype

POINTS_AT_A_TIME = 2**16  # voxels that are interpolated
TABLE_STEP = 2**22  # scores by which the table grows


class RotatedGrid(NoResampling):
    """Keep the scores around label borders in a table, all classes of a voxel side by side, and look them up.

    Arguments are those of :class:`NoResampling`.
    """

    def __init__(
        self,
        mapping: InverseMapping,
        decide: Callable[[Tensor], Tensor],
        zero_labels: Tensor,
        dtype: torch.dtype,
        classes: int,
    ) -> None:
        super().__init__(mapping, decide, zero_labels, dtype, classes)
        shape = mapping.before.source_shape
        self.table_rows = torch.zeros(1, *shape, dtype=torch.int32)  # of each voxel; the table's first row is zeros
        # grown in place: Linux moves the pages of a large block, so that it is never there twice
        self.table, self.count = np.zeros((1, classes), np.float32), 1
        indices = zip(mapping.before.indices, mapping.before.axes)
        self.has_padding = any(bool((index >= shape[axis]).any()) for index, axis in indices)
        self.last: tuple[int, Tensor, Tensor] | None = None  # row, scores, and which of them are needed

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Keep the labels, and the scores around their borders."""
        super().feed(row, planes, labels)
        for k in range(row, row + planes.shape[1]):
            needed = _mixed_corners(self.network_labels[:, max(0, k - 1)], self.network_labels[:, k]) | self.has_padding
            self._store_last(needed)
            self.last = k, planes[:, k - row], needed
        self.last = k, planes[:, -1].clone(), needed

    def _store_last(self, needed: Tensor) -> None:
        """Put the last plane's voxels into the table, also those that the next plane needs."""
        if self.last is None:
            return
        row, plane, needed_before = self.last
        voxels = (needed_before | needed).flatten().nonzero().flatten()
        start, self.count = self.count, self.count + len(voxels)
        if self.count > len(self.table):
            classes = self.table.shape[1]
            self.table.resize((self.count + TABLE_STEP // classes, classes), refcheck=False)
        self.table[start : self.count] = plane.flatten(1).index_select(1, voxels).T.numpy()
        table_rows = torch.arange(start, self.count, dtype=torch.int32)
        self.table_rows[0, row].flatten().index_copy_(0, voxels, table_rows)

    def labels(self) -> Tensor:
        """Compute the labels on the grid before ``mapping.after``."""
        if self.last is not None:
            self._store_last(self.last[2])
            self.last = None
        table = torch.from_numpy(self.table)
        before = self.mapping.before
        table_rows = before.apply(self.table_rows).flatten()
        cells = before.apply(self.network_labels, self.zero_labels).to(mixed_label_dtype(table.shape[1]))
        for dim in (1, 2, 3):
            cells = equal_or_mixed(cells, _next_along(cells, dim))
        shape, matrix = self.mapping.after.source_shape, torch.as_tensor(self.mapping.xform)
        labels = torch.empty((len(cells), *shape), dtype=self.network_labels.dtype)
        j, k = (torch.arange(n, dtype=torch.float64) for n in shape[1:])
        plane = [matrix[axis, 1] * j[:, None] + matrix[axis, 2] * k + matrix[axis, 3] for axis in range(3)]
        for i in range(shape[0]):
            points = [(matrix[a, 0] * i + plane[a]).clamp_(0, n - 1).flatten() for a, n in enumerate(cells.shape[1:])]
            labels[:, i] = self._labels_at(points, cells, table_rows, table).unflatten(1, shape[1:])
        return labels

    def _labels_at(self, points: list[Tensor], cells: Tensor, table_rows: Tensor, table: Tensor) -> Tensor:
        """Look up labels (C, N) at N points, given by their three coordinates."""
        shape = cells.shape[1:]
        lower = [p.long() for p in points]
        first_corner = (lower[0] * shape[1] + lower[1]) * shape[2] + lower[2]
        labels = cells.flatten(1).index_select(1, first_corner)
        mixed = (labels == MIXED).any(0).nonzero().flatten()
        strides = (shape[1] * shape[2], shape[2], 1)
        for some in mixed.split(POINTS_AT_A_TIME):
            low = [index.index_select(0, some) for index in lower]
            weights = [(p.index_select(0, some) - at).float()[:, None] for p, at in zip(points, low)]
            steps = [(at + 1 < n) * stride for at, n, stride in zip(low, shape, strides)]
            scores = interpolate_corners(
                lambda at: table.index_select(0, table_rows.index_select(0, at)), first_corner[some], steps, weights
            )
            labels[:, some] = self.decide(scores.T.contiguous()).to(labels.dtype)
        return labels


def _next_along(labels: Tensor, dim: int) -> Tensor:
    """Label of the next voxel along an axis; the last one's its own."""
    return torch.cat([labels.narrow(dim, 1, labels.shape[dim] - 1), labels.narrow(dim, -1, 1)], dim)


def _mixed_corners(labels: Tensor, others: Tensor) -> Tensor:
    """(w, d), which voxels are corners of a cell between two planes (C, w, d) that has several labels."""
    cells = equal_or_mixed(labels.to(torch.int32), others)
    for dim in (1, 2):
        cells = equal_or_mixed(cells, _next_along(cells, dim))
    mixed = (cells == MIXED).any(0)
    for dim in (0, 1):
        mixed = F.pad(mixed.narrow(dim, 0, mixed.shape[dim] - 1), (1, 0) if dim else (0, 0, 1, 0)) | mixed
    return mixed
