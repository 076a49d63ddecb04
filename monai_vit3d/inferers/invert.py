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
from torch.nn import functional as F

from .labels import likeliest
from .way_back import WayBack

DENSE = 0.3  # above this share of a plane's voxels, all of them are interpolated, one axis after another
MIXED = -1  # neighbours differ
POINTS = 2**16  # voxels that are interpolated at a time where axes are turned


def argmax(values: Tensor) -> Tensor:
    """The likeliest class, (K, ...) to (1, ...)."""
    return likeliest(values)[None]


class LabelInverter:
    """Takes the planes of a network's numbers from the first to the last, and has the file's labels then.

    Where the axes of the two grids are those of each other, two planes are held at a time; where they are turned, all.

    Args:
        way: see :func:`~monai_vit3d.inferers.way_back`.
        decide: (K, ...) numbers to (C, ...) whole numbers of 0 or above, each voxel by itself. The numbers of which it
            gives the same answer have to be convex: those whose k-th is the largest, or is above a threshold.

    Example:
        >>> inverter = LabelInverter(way_back(image, preprocessing, file_shape))
        >>> for planes in logits.split(8, dim=1):  # (K, h, w, d)
        ...     inverter.feed(planes)
        >>> labels = inverter.labels()  # (1, H, W, D)
    """

    def __init__(self, way: WayBack, decide: Callable[[Tensor], Tensor] = argmax) -> None:
        self.way, self.decide, self.row = way, decide, 0
        self._grid: _Whole | _Aligned | _Turned | None = None

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
            kind = _Whole if self.way.lines is self.way.xform is None else _Aligned if self.way.lines else _Turned
            self._grid = kind(self.way, self.decide, zeros, labels.dtype, len(planes))
        self._grid.feed(self.row, planes, labels)
        self.row += planes.shape[1]
        return labels

    def labels(self) -> Tensor:
        """(C, H, W, D) on the file's grid, after the last planes."""
        if self._grid is None or self.row != self.way.before.source[0]:
            raise RuntimeError(f"{self.row} planes were fed of {self.way.before.source[0]}")
        return self.way.after.take(self._grid.labels(), self._grid.zeros)


class _Whole:
    """No interpolation: labels go where the voxels go."""

    def __init__(
        self, way: WayBack, decide: Callable[[Tensor], Tensor], zeros: Tensor, dtype: torch.dtype, classes: int
    ) -> None:
        self.way, self.decide, self.zeros = way, decide, zeros
        self.found = torch.empty((len(zeros), *way.before.source), dtype=dtype)

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Keep the labels."""
        self.found[:, row : row + labels.shape[1]] = labels

    def labels(self) -> Tensor:
        """On the grid before ``way.after``."""
        return self.way.before.take(self.found, self.zeros)


class _Turned(_Whole):
    """All numbers are held, and those around a voxel looked up wherever they lie."""

    def __init__(
        self, way: WayBack, decide: Callable[[Tensor], Tensor], zeros: Tensor, dtype: torch.dtype, classes: int
    ) -> None:
        super().__init__(way, decide, zeros, dtype, classes)
        self.values = torch.empty((classes, *way.before.source))

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Keep numbers and labels."""
        super().feed(row, planes, labels)
        self.values[:, row : row + planes.shape[1]] = planes

    def labels(self) -> Tensor:
        """On the grid before ``way.after``."""
        values = self.way.before.take(self.values).contiguous()
        cells = self.way.before.take(self.found, self.zeros).to(torch.int16 if len(values) < 2**15 else torch.int32)
        for dim in (1, 2, 3):
            following = torch.cat([cells.narrow(dim, 1, cells.shape[dim] - 1), cells.narrow(dim, -1, 1)], dim)
            cells = _merged(cells, following)
        shape = self.way.after.source
        found = torch.empty((len(cells), *shape), dtype=self.found.dtype)
        matrix = self.way.xform
        j, k = (torch.arange(n, dtype=torch.float64) for n in shape[1:])
        plane = [matrix[axis, 1] * j[:, None] + matrix[axis, 2] * k + matrix[axis, 3] for axis in range(3)]
        for i in range(shape[0]):
            points = [(matrix[a, 0] * i + plane[a]).clamp_(0, n - 1).flatten() for a, n in enumerate(values.shape[1:])]
            self._fill(found[:, i].flatten(1), points, values, cells)
        return found

    def _fill(self, found: Tensor, points: list[Tensor], values: Tensor, cells: Tensor) -> None:
        """The labels (C, N) at N points."""
        shape = values.shape[1:]
        lower = [p.long() for p in points]
        place = (lower[0] * shape[1] + lower[1]) * shape[2] + lower[2]
        labels = cells.flatten(1).index_select(1, place)
        found.copy_(labels)
        mixed = (labels == MIXED).any(0).nonzero().flatten()
        strides = (shape[1] * shape[2], shape[2], 1)
        for some in mixed.split(POINTS):
            at, flat = place[some], values.flatten(1)
            weights = [(p[some] - low[some]).float() for p, low in zip(points, lower)]
            steps = [(low[some] + 1 < n) * s for low, n, s in zip(lower, shape, strides)]
            found[:, some] = self.decide(_corners(flat, at, steps, weights)).to(found.dtype)


class _Aligned(_Whole):
    """One axis after another, for the rows between two planes of the network's grid at a time."""

    def __init__(
        self, way: WayBack, decide: Callable[[Tensor], Tensor], zeros: Tensor, dtype: torch.dtype, classes: int
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

    def _axes(self):
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
        cells = _merged(labels.to(torch.int16 if self.classes < 2**15 else torch.int32), others)
        for dim in (1, 2):
            cells = _merged(cells.index_select(dim, self.lower[dim]), cells.index_select(dim, self.upper[dim]))
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
        j, k = some // width, some % width
        low, up = (side[1][j] * plane.shape[2] + side[2][k] for side in (self.lower, self.upper))
        step = self.upper[1][j] - self.lower[1][j]
        steps = [step * plane.shape[2], self.upper[2][k] - self.lower[2][k]]
        del up
        return _corners(plane.flatten(1), low, steps, [self.weight[1][j], self.weight[2][k]])

    def _all(self, row: int, plane: Tensor) -> Tensor:
        """A plane's numbers (K, H', W') at all voxels of the new grid's."""
        if row not in self.dense:
            for dim in (1, 2):
                low, up = (plane.index_select(dim, side[dim]) for side in (self.lower, self.upper))
                weight = self.weight[dim][:, None] if dim == 1 else self.weight[dim]
                plane = torch.lerp(low, up, weight)
            self.dense[row] = plane
        return self.dense[row]


def _merged(labels: Tensor, others: Tensor) -> Tensor:
    """Labels where both are the same."""
    return torch.where(labels == others, labels, MIXED)


def _corners(values: Tensor, place: Tensor, steps: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Linear interpolation between the corners of cells, one axis after another.

    Args:
        values: (K, M).
        place: (N,) index of each cell's first corner.
        steps: for each axis (N,), how far the next corner lies.
        weights: for each axis (N,), of the next corner.
    """
    if not steps:
        return values.index_select(1, place)
    first = _corners(values, place, steps[1:], weights[1:])
    return torch.lerp(first, _corners(values, place + steps[0], steps[1:], weights[1:]), weights[0])
