"""Labels on a grid that is turned against the network's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .inverse_mapping import InverseMapping
from .label_cells import MIXED, NoResampling, equal_or_mixed, interpolate_corners, label_dtype

POINTS = 2**16  # voxels that are interpolated at a time
SPARE = 2**22  # numbers by which the table grows


class Rotated(NoResampling):
    """Numbers around borders are held, all classes of a voxel side by side, and looked up wherever they lie."""

    def __init__(
        self, way: InverseMapping, decide: Callable[[Tensor], Tensor], zeros: Tensor, dtype: torch.dtype, classes: int
    ) -> None:
        super().__init__(way, decide, zeros, dtype, classes)
        self.rows = torch.zeros(1, *way.before.source, dtype=torch.int32)  # of the table; its first is zeros
        # grown in place: Linux moves the pages of a large block, so that it is never there twice
        self.table, self.count = np.zeros((1, classes), np.float32), 1
        self.padded = any(bool((i >= way.before.source[a]).any()) for i, a in zip(way.before.index, way.before.axes))
        self.last: tuple[int, Tensor, Tensor] | None = None  # a plane, and which of its voxels are needed

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Keep the labels, and the numbers around their borders."""
        super().feed(row, planes, labels)
        for k in range(row, row + planes.shape[1]):
            needed = _corners_of_mixed(self.found[:, max(0, k - 1)], self.found[:, k]) | self.padded
            self._keep(needed)
            self.last = k, planes[:, k - row], needed
        self.last = k, planes[:, -1].clone(), needed

    def _keep(self, needed: Tensor) -> None:
        """Put the last plane's voxels into the table, those that are needed for the next plane, too."""
        if self.last is None:
            return
        row, plane, before = self.last
        some = (before | needed).flatten().nonzero().flatten()
        start, self.count = self.count, self.count + len(some)
        if self.count > len(self.table):
            classes = self.table.shape[1]
            self.table.resize((self.count + SPARE // classes, classes), refcheck=False)
        self.table[start : self.count] = plane.flatten(1).index_select(1, some).T.numpy()
        numbers = torch.arange(start, self.count, dtype=torch.int32)
        self.rows[0, row].flatten().index_copy_(0, some, numbers)

    def labels(self) -> Tensor:
        """On the grid before ``way.after``."""
        if self.last is not None:
            self._keep(self.last[2])
            self.last = None
        table = torch.from_numpy(self.table)
        rows = self.way.before.take(self.rows).flatten()
        cells = self.way.before.take(self.found, self.zeros).to(label_dtype(table.shape[1]))
        for dim in (1, 2, 3):
            cells = equal_or_mixed(cells, _following(cells, dim))
        shape = self.way.after.source
        found = torch.empty((len(cells), *shape), dtype=self.found.dtype)
        matrix = self.way.xform
        j, k = (torch.arange(n, dtype=torch.float64) for n in shape[1:])
        plane = [matrix[axis, 1] * j[:, None] + matrix[axis, 2] * k + matrix[axis, 3] for axis in range(3)]
        for i in range(shape[0]):
            points = [(matrix[a, 0] * i + plane[a]).clamp_(0, n - 1).flatten() for a, n in enumerate(cells.shape[1:])]
            found[:, i] = self._plane(points, cells, rows, table).unflatten(1, shape[1:])
        return found

    def _plane(self, points: list[Tensor], cells: Tensor, rows: Tensor, table: Tensor) -> Tensor:
        """The labels (C, N) at N points."""
        shape = cells.shape[1:]
        lower = [p.long() for p in points]
        place = (lower[0] * shape[1] + lower[1]) * shape[2] + lower[2]
        labels = cells.flatten(1).index_select(1, place)
        mixed = (labels == MIXED).any(0).nonzero().flatten()
        strides = (shape[1] * shape[2], shape[2], 1)
        for some in mixed.split(POINTS):
            low = [index.index_select(0, some) for index in lower]
            weights = [(p.index_select(0, some) - at).float()[:, None] for p, at in zip(points, low)]
            steps = [(at + 1 < n) * stride for at, n, stride in zip(low, shape, strides)]
            values = interpolate_corners(
                lambda at: table.index_select(0, rows.index_select(0, at)), place[some], steps, weights
            )
            labels[:, some] = self.decide(values.T.contiguous()).to(labels.dtype)
        return labels


def _following(labels: Tensor, dim: int) -> Tensor:
    """The next voxel's along an axis; the last one's its own."""
    return torch.cat([labels.narrow(dim, 1, labels.shape[dim] - 1), labels.narrow(dim, -1, 1)], dim)


def _corners_of_mixed(labels: Tensor, others: Tensor) -> Tensor:
    """(w, d), which voxels are corners of a cell between two planes (C, w, d) that has several labels."""
    cells = equal_or_mixed(labels.to(torch.int32), others)
    for dim in (1, 2):
        cells = equal_or_mixed(cells, _following(cells, dim))
    mixed = (cells == MIXED).any(0)
    for dim in (0, 1):
        mixed = F.pad(mixed.narrow(dim, 0, mixed.shape[dim] - 1), (1, 0) if dim else (0, 0, 1, 0)) | mixed
    return mixed
