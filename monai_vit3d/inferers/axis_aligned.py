"""Labels on a grid whose axes are those of the network's, one axis after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.axis_resampling import taken
from .inverse_mapping import InverseMapping
from .label_cells import MIXED, NoResampling, equal_or_mixed, interpolate_corners, label_dtype

DENSE = 0.3  # above this share of a plane's voxels, all of them are interpolated


class AxisAligned(NoResampling):
    """One axis after another, for the rows between two planes of the network's grid at a time."""

    def __init__(
        self, way: InverseMapping, decide: Callable[[Tensor], Tensor], zeros: Tensor, dtype: torch.dtype, classes: int
    ) -> None:
        self.way, self.decide, self.zeros = way, decide, zeros
        axes = way.before.axes
        self.found = torch.empty((len(zeros), *way.after.source), dtype=dtype)
        # in the order of the network's axes, which planes come in
        order = [axes.index(axis) for axis in range(3)]
        self.target = self.found.permute(0, *(axis + 1 for axis in order))
        lines = [way.lines[axis] for axis in order]
        taps = [way.before.index[axis] for axis in order]
        self.lower = [index[line.lower] for index, line in zip(taps, lines)]
        self.upper = [index[line.upper] for index, line in zip(taps, lines)]
        self.weight = [torch.zeros(len(ln.lower)) if ln.weight is None else ln.weight for ln in lines]
        for low, up, weight in zip(self.lower, self.upper, self.weight):
            up[weight == 0] = low[weight == 0]
        self.sizes = way.before.source
        # beyond the last voxel is one that stands for zeros, where there is need of it
        self.border = [int(bool((up >= n).any() | (low >= n).any())) for low, up, n in self._axes()]
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.dense: dict[int, Tensor] = {}
        self.rows = self._rows()
        self.classes = classes

    def _axes(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        return zip(self.lower, self.upper, self.sizes)

    def _rows(self) -> dict[int, dict[tuple[int, int], list[int]]]:
        """Rows of the new grid: by the last plane that they need, and by both of them."""
        rows: dict[int, dict[tuple[int, int], list[int]]] = {}
        for i, pair in enumerate(zip(self.lower[0].tolist(), self.upper[0].tolist())):
            last = max((p for p in pair if p < self.sizes[0]), default=0)
            rows.setdefault(last, {}).setdefault(pair, []).append(i)
        return rows

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Interpolate all that lies between these planes, and between the last one before and the first."""
        for k in range(planes.shape[1]):
            self.held[row + k] = self._bordered(planes[:, k]), self._bordered(labels[:, k], self.zeros)
            for pair, rows in self.rows.get(row + k, {}).items():
                self._between(pair, rows)
            self.held.pop(row + k - 1, None)
            self.dense.pop(row + k - 1, None)
        last, labelled = self.held[row + k]
        self.held = {row + k: (last.clone(), labelled.clone())}

    def labels(self) -> Tensor:
        """On the grid before ``way.after``."""
        return self.found

    def _bordered(self, plane: Tensor, outside: Tensor | None = None) -> Tensor:
        """A plane with zeros, or their labels, beyond its ends."""
        if not any(self.border[1:]):
            return plane
        wider = F.pad(plane, (0, self.border[2], 0, self.border[1]))
        if outside is not None:
            wider[:, self.sizes[1] :] = outside[:, None, None]
            wider[:, :, self.sizes[2] :] = outside[:, None, None]
        return wider

    def _plane(self, row: int) -> tuple[Tensor, Tensor]:
        """Numbers and labels of a plane; beyond the last, zeros and theirs."""
        if row < self.sizes[0]:
            return self.held[row]
        values, labels = next(iter(self.held.values()))
        return torch.zeros_like(values), self.zeros[:, None, None].expand_as(labels)

    def _between(self, pair: tuple[int, int], rows: list[int]) -> None:
        """Fill the rows between two planes."""
        (first, labels), (second, others) = (self._plane(row) for row in pair)
        cells = equal_or_mixed(labels.to(label_dtype(self.classes)), others)
        for dim in (1, 2):
            cells = equal_or_mixed(*(taken(cells, dim, side[dim]) for side in (self.lower, self.upper)))
        mixed = (cells == MIXED).any(0).flatten()
        some = mixed.nonzero().flatten()
        cells = cells.to(self.found.dtype)
        if len(some) > DENSE * len(mixed):
            ends = [self._all(row, plane) for row, plane in zip(pair, (first, second))]
        elif len(some):
            ends = [self._some(plane, some) for plane in ((first, second) if pair[0] != pair[1] else (first,))]
        for row in rows:
            if len(some):
                values = torch.lerp(ends[0], ends[-1], float(self.weight[0][row]))
                decided = self.decide(values).to(cells.dtype)
                if decided[0].numel() == len(mixed):
                    cells = decided.reshape(cells.shape)
                else:
                    cells.flatten(1)[:, some] = decided
            self.target[:, row] = cells

    def _some(self, plane: Tensor, some: Tensor) -> Tensor:
        """A plane's numbers (K, N) at some voxels of the new grid's."""
        width = len(self.lower[2])
        at = some // width, some % width
        lower, upper, weights = (
            [of.index_select(0, i) for of, i in zip(side[1:], at)] for side in (self.lower, self.upper, self.weight)
        )
        place = lower[0] * plane.shape[2] + lower[1]
        steps = [(upper[0] - lower[0]) * plane.shape[2], upper[1] - lower[1]]
        values = plane.flatten(1)
        return interpolate_corners(lambda at: values.index_select(1, at), place, steps, weights)

    def _all(self, row: int, plane: Tensor) -> Tensor:
        """A plane's numbers (K, H', W') at all voxels of the new grid's."""
        if row not in self.dense:
            for dim in (2, 1):
                low, up = (taken(plane, dim, side[dim]) for side in (self.lower, self.upper))
                weight = self.weight[dim][:, None] if dim == 1 else self.weight[dim]
                plane = torch.lerp(low, up, weight)
            self.dense[row] = plane
        return self.dense[row]
