"""Measure the size of each label and the intensities inside it, and write the tables of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.data.csv_files import csv_cell, write_csv
from monai_vit3d.data.same_grid import check_labels
from monai_vit3d.data.volume import Array, Grid

COLUMNS = ("filename", "label", "name", "voxels", "volume_ml", "mean", "std", "min", "max")


@dataclass(frozen=True)
class LabelSummary:
    """Size and intensities of one label of one case.

    Args:
        label: its value in the label file.
        name: what it stands for.
        voxels: how many have it.
        volume_ml: of all of them.
        mean: of the image inside the label, in the image's own unit; None where no voxel has the label.
        std: standard deviation, over the voxels as a population (divided by their number).
        min: smallest value.
        max: largest value.
    """

    label: int
    name: str
    voxels: int
    volume_ml: float
    mean: float | None
    std: float | None
    min: float | None
    max: float | None

    def row(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return asdict(self)


def label_stats(labels: Array, voxels: Array, grid: Grid, names: Mapping[int, str]) -> list[LabelSummary]:
    """Measure every label that is present or named, in the order of their values; 0 is background.

    All labels are summed together, one slice after the other: time grows with the voxels and not with the labels.
    Means and squared deviations of the slices are merged in float64 as in Chan, Golub & LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances" (1979), so a large offset costs no digits.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) masks that are nonzero inside; channel c is label c + 1.
        voxels: (H, W, D) image.
        grid: where both lie.
        names: label value to name; others are called by their number.

    Raises:
        UsageError: labels are not integers, or the shapes differ.
    """
    check_labels(labels, voxels, grid)
    values = _present(labels)
    named = np.array([value for value in names if value != 0], np.int64)
    values = np.union1d(values, named)
    sums = _Sums(len(values))
    for codes, intensities in _slices(labels, voxels, values):
        sums.add(codes, intensities)
    return [_record(int(value), i, sums, grid, names) for i, value in enumerate(values)]


def write_stats(records: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write one line for each label of each case, as CSV, all of it or nothing.

    File and label names are guarded against spreadsheets by :func:`monai_vit3d.data.csv_files.csv_cell`.

    Args:
        records: ``files`` of run.json; those without ``stats`` are passed over.
        path: the file to write.
    """
    rows = [[case_cell(r), *(_cell(row.get(c)) for c in COLUMNS[1:])] for r in records for row in r.get("stats") or ()]
    write_csv([list(COLUMNS), *rows], path)


def write_predictions(records: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write one line for each case that a classifier answered, as CSV, all of it or nothing.

    Args:
        records: ``files`` of run.json; those without ``cells`` are passed over.
        path: the file to write.
    """
    answered = [record for record in records if record.get("cells")]
    header = ["filename", *(answered[0]["cells"] if answered else ())]
    write_csv([header, *([case_cell(r), *r["cells"].values()] for r in answered)], path)


def case_cell(record: Mapping[str, Any]) -> str:
    """Name a case in a table."""
    return csv_cell(str(record.get("name") or record.get("input") or ""))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return csv_cell(value) if isinstance(value, str) else str(value)


def _present(labels: Array) -> Array:
    """Return the sorted label values other than 0, as int64; of masks, every channel's."""
    if labels.ndim == 4:
        return np.arange(1, len(labels) + 1)
    per_slice = [np.unique(part[part != 0]) for part in labels]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(part.astype(np.int64) for part in per_slice)]))


def _slices(labels: Array, voxels: Array, values: Array) -> Iterator[tuple[Array, Array]]:
    """Yield, slice by slice, the labelled voxels' places in ``values`` and their float64 intensities."""
    # of the usual labels: looking up is ten times as fast as searching
    table: Array = np.searchsorted(values, np.arange(256))
    for i, plane in enumerate(voxels):
        if labels.ndim == 3:
            inside = labels[i] != 0
            codes = labels[i][inside]
            places = table[codes] if labels.dtype == np.uint8 else np.searchsorted(values, codes.astype(np.int64))
            yield places, plane[inside].astype(np.float64)
            continue
        channel, *place = np.nonzero(labels[:, i])
        yield np.searchsorted(values, channel + 1), plane[tuple(place)].astype(np.float64)


class _Sums:
    """Count, mean, squared deviations and extremes of K groups."""

    def __init__(self, size: int) -> None:
        self.count = np.zeros(size, np.int64)
        self.mean, self.squares = np.zeros(size), np.zeros(size)
        self.low, self.high = np.full(size, math.inf), np.full(size, -math.inf)

    def add(self, codes: Array, values: Array) -> None:
        """Add values ``(N,)`` of the groups ``codes`` ``(N,)``."""
        if not len(codes):
            return
        size = len(self.count)
        count = np.bincount(codes, minlength=size)
        mean = np.bincount(codes, values, size) / np.maximum(count, 1)
        squares = np.bincount(codes, (values - mean[codes]) ** 2, size)
        both, shift = np.maximum(self.count + count, 1), mean - self.mean
        self.squares += squares + shift**2 * self.count * (count / both)
        self.mean += shift * (count / both)
        self.count += count
        np.minimum.at(self.low, codes, values)
        np.maximum.at(self.high, codes, values)


def _record(value: int, i: int, sums: _Sums, grid: Grid, names: Mapping[int, str]) -> LabelSummary:
    count, name = int(sums.count[i]), str(names.get(value, f"label {value}"))
    volume_ml = count * grid.voxel_ml
    if not count:
        return LabelSummary(value, name, 0, 0.0, None, None, None, None)
    deviation = math.sqrt(sums.squares[i] / count)
    low, high = float(sums.low[i]), float(sums.high[i])
    return LabelSummary(value, name, count, volume_ml, float(sums.mean[i]), deviation, low, high)
