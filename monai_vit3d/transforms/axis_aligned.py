"""Labels on a grid whose axes are parallel to the network's: interpolated along one axis after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .axis_resampling import select
from .inverse_mapping import InverseMapping
from .label_cells import MIXED, NoResampling, equal_or_mixed, interpolate_corners, mixed_label_dtype

MAX_SPARSE_SHARE = 0.3  # with more mixed voxels in a plane, all of its voxels are interpolated


class AxisAligned(NoResampling):
    """Interpolate one axis after another, for the rows between two planes of the network's grid at a time.

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
        self.mapping, self.decide, self.zero_labels = mapping, decide, zero_labels
        axes, interps = mapping.before.axes, mapping.axis_interps or ()
        self.resampled = torch.empty((len(zero_labels), *mapping.after.source_shape), dtype=dtype)
        # in the order of the network's axes, in which planes come
        order = [axes.index(axis) for axis in range(3)]
        self.target = self.resampled.permute(0, *(axis + 1 for axis in order))
        ordered = [(interps[axis], mapping.before.indices[axis]) for axis in order]
        self.lower = [index[interp.lower] for interp, index in ordered]
        self.upper = [index[interp.upper] for interp, index in ordered]
        self.weight = [torch.zeros(len(i.lower)) if i.weight is None else i.weight for i, _ in ordered]
        for low, up, weight in zip(self.lower, self.upper, self.weight):
            up[weight == 0] = low[weight == 0]
        self.sizes = mapping.before.source_shape
        # an index beyond the last voxel stands for zeros: a border of one voxel where there are such indices
        self.border = [int(bool((up >= n).any() | (low >= n).any())) for low, up, n in self._axes()]
        self.held: dict[int, tuple[Tensor, Tensor]] = {}  # scores and labels of the planes that later rows need
        self.dense: dict[int, Tensor] = {}
        self.rows = self._rows_by_planes()
        self.classes = classes

    def _axes(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        return zip(self.lower, self.upper, self.sizes)

    def _rows_by_planes(self) -> dict[int, dict[tuple[int, int], list[int]]]:
        """Group the rows of the new grid by the last plane that they need, and by both of their planes."""
        rows: dict[int, dict[tuple[int, int], list[int]]] = {}
        for i, pair in enumerate(zip(self.lower[0].tolist(), self.upper[0].tolist())):
            last = max((p for p in pair if p < self.sizes[0]), default=0)
            rows.setdefault(last, {}).setdefault(pair, []).append(i)
        return rows

    def feed(self, row: int, planes: Tensor, labels: Tensor) -> None:
        """Interpolate all that lies between these planes, and between the last one before and the first."""
        for k in range(planes.shape[1]):
            self.held[row + k] = self._bordered(planes[:, k]), self._bordered(labels[:, k], self.zero_labels)
            for pair, rows in self.rows.get(row + k, {}).items():
                self._fill_between(pair, rows)
            self.held.pop(row + k - 1, None)
            self.dense.pop(row + k - 1, None)
        last_scores, last_labels = self.held[row + k]
        self.held = {row + k: (last_scores.clone(), last_labels.clone())}

    def labels(self) -> Tensor:
        """Return the labels on the grid before ``mapping.after``."""
        return self.resampled

    def _bordered(self, plane: Tensor, fill: Tensor | None = None) -> Tensor:
        """Pad a plane with zeros, or their labels, beyond its ends."""
        if not any(self.border[1:]):
            return plane
        wider = F.pad(plane, (0, self.border[2], 0, self.border[1]))
        if fill is not None:
            wider[:, self.sizes[1] :] = fill[:, None, None]
            wider[:, :, self.sizes[2] :] = fill[:, None, None]
        return wider

    def _plane(self, row: int) -> tuple[Tensor, Tensor]:
        """Return scores and labels of a plane; beyond the last, zeros and their labels."""
        if row < self.sizes[0]:
            return self.held[row]
        scores, labels = next(iter(self.held.values()))
        return torch.zeros_like(scores), self.zero_labels[:, None, None].expand_as(labels)

    def _fill_between(self, pair: tuple[int, int], rows: list[int]) -> None:
        """Fill the rows between two planes."""
        (first, first_labels), (second, second_labels) = (self._plane(row) for row in pair)
        labels = equal_or_mixed(first_labels.to(mixed_label_dtype(self.classes)), second_labels)
        for dim in (1, 2):
            labels = equal_or_mixed(*(select(labels, dim, side[dim]) for side in (self.lower, self.upper)))
        is_mixed = (labels == MIXED).any(0).flatten()
        mixed = is_mixed.nonzero().flatten()
        labels = labels.to(self.resampled.dtype)
        if len(mixed) > MAX_SPARSE_SHARE * len(is_mixed):
            ends = [self._interpolate_all(row, plane) for row, plane in zip(pair, (first, second))]
        elif len(mixed):
            planes = (first, second) if pair[0] != pair[1] else (first,)
            ends = [self._interpolate_at(plane, mixed) for plane in planes]
        for row in rows:
            if len(mixed):
                scores = torch.lerp(ends[0], ends[-1], float(self.weight[0][row]))
                decided = self.decide(scores).to(labels.dtype)
                if decided[0].numel() == len(is_mixed):
                    labels = decided.reshape(labels.shape)
                else:
                    labels.flatten(1)[:, mixed] = decided
            self.target[:, row] = labels

    def _interpolate_at(self, plane: Tensor, voxels: Tensor) -> Tensor:
        """Interpolate a plane's scores (K, N) at some voxels of the new grid's plane."""
        width = len(self.lower[2])
        indices = voxels // width, voxels % width
        lower, upper, weights = (
            [of.index_select(0, i) for of, i in zip(side[1:], indices)]
            for side in (self.lower, self.upper, self.weight)
        )
        first_corner = lower[0] * plane.shape[2] + lower[1]
        steps = [(upper[0] - lower[0]) * plane.shape[2], upper[1] - lower[1]]
        scores = plane.flatten(1)
        return interpolate_corners(lambda at: scores.index_select(1, at), first_corner, steps, weights)

    def _interpolate_all(self, row: int, plane: Tensor) -> Tensor:
        """Interpolate a plane's scores (K, H', W') at all voxels of the new grid's plane."""
        if row not in self.dense:
            for dim in (2, 1):
                low, up = (select(plane, dim, side[dim]) for side in (self.lower, self.upper))
                weight = self.weight[dim][:, None] if dim == 1 else self.weight[dim]
                plane = torch.lerp(low, up, weight)
            self.dense[row] = plane
        return self.dense[row]
