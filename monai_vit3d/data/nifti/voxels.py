"""Convert stored voxels of any type to finite float32, with little memory beside the stored ones and the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from monai_vit3d.data.volume import Array

from .file_bytes import refusal

SLAB_VOXELS = 2**17  # voxels that are float64 at a time: they stay in a core's cache
ROWS_AT_A_TIME = 128  # voxels along the first axis that change from the file's order to C's at a time
TILE = 2**14  # voxels of such a part at most
MAX_FLOAT32_SQUARE = 1e15  # squares and sums of larger ones leave float32
MAX_ROUNDING_STD = 0.01  # of the standard deviation; more would be seen


@dataclass
class _Range:
    """Finite range of a volume's values, and how many voxels are not finite."""

    low: float = np.inf
    high: float = -np.inf
    odd: dict[str, int] = field(default_factory=lambda: {"NaN": 0, "+Inf": 0, "-Inf": 0})

    def add(self, values: Array) -> None:
        """Widen the extent by some values, and count those that are not finite."""
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            for name, mask in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
                self.odd[name] += int(mask(values).sum())
            values = values[np.isfinite(values)]
            low, high = (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
        self.low, self.high = min(self.low, low), max(self.high, high)


@dataclass(frozen=True)
class _Source:
    """Stored voxels, in the file's order, with slope and intercept."""

    stored: Array
    slope: float
    inter: float

    @property
    def is_plain(self) -> bool:
        return (self.slope, self.inter) == (1.0, 0.0)

    @property
    def is_whole(self) -> bool:
        return self.is_plain and self.stored.dtype.kind != "f"

    def parts(self) -> Iterator[Array]:
        """Yield stored voxels slab by slab."""
        flat = self.stored.reshape(-1, order="F")  # a view of what the file holds
        return (flat[first : first + SLAB_VOXELS] for first in range(0, flat.size, SLAB_VOXELS))

    def values(self, part: Array, extent: _Range | None = None) -> Array:
        """Scale stored values, in float64; with an extent, repair those that are not finite."""
        values = part.astype(np.float64)
        if not self.is_plain:
            values *= self.slope
            values += self.inter
        if extent is not None and any(extent.odd.values()):
            np.nan_to_num(values, copy=False, nan=extent.low, posinf=extent.high, neginf=extent.low)
        return values


@dataclass(frozen=True)
class _Fit:
    """The scaling that fits values into float32: ``(value / unit - mean) / std``; the unit is a power of 2."""

    unit: float
    mean: float
    std: float

    def apply(self, values: Array) -> Array:
        """Shift and scale float64 values in place."""
        values /= self.unit
        values -= self.mean
        values /= self.std or 1.0
        return values


def to_float32(
    raw: Array, slope: float, inter: float, path: str | Path, exact: bool = False
) -> tuple[Array, list[str]]:
    """Convert scaled voxels to float32.

    NaN and -Inf become the smallest finite value, +Inf the largest. Values that float32 cannot represent well (above
    1e15, or so far from 0 that rounding exceeds 1 % of their standard deviation) are shifted and scaled in float64.

    Args:
        raw: (H, W, D) stored values of any real type and byte order, in Fortran order.
        slope: of the values.
        inter: added to slope times value, as nibabel does.
        path: the file, for messages.
        exact: refuse values that would be repaired, shifted or scaled, as for labels.

    Returns:
        (H, W, D) float32 in C order, as torch expects it, and a sentence for each oddity.

    Raises:
        ImageError: no voxel is finite; with ``exact``, one is not, or float32 cannot represent the values.
    """
    source = _Source(raw, slope, inter)
    extent = _extent(source)
    if extent.low > extent.high:
        raise refusal(path, f"none of {raw.size} voxels is finite; expected an image", "Export it again.")
    fit = _fit(source, extent)
    if exact:
        _refuse_repairs(extent, fit, path)
    # float64 in between would change nothing: it represents all integers that are not fitted
    straight = source.is_plain and not fit and not any(extent.odd.values())
    out = np.empty(raw.shape, np.float32)
    for tile in _tiles(raw.shape):
        stored = raw[tile].copy(order="F")  # small enough for the cache, in which the order changes
        values = stored if straight else source.values(stored, extent)
        out[tile] = fit.apply(values) if fit else values
    return out, _warn_rounding(extent, raw.size, fit)


def _refuse_repairs(extent: _Range, fit: _Fit | None, path: str | Path) -> None:
    kinds = ", ".join(f"{count} {name}" for name, count in extent.odd.items() if count)
    if kinds or fit:
        came = f"labels with voxels that are not finite ({kinds})" if kinds else f"labels up to {extent.high:g}"
        raise refusal(path, f"{came}; expected whole numbers of classes", "Correct the file, or leave it out.")


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Yield tiles of the first two axes: reordering a whole volume at once would wait for memory at every voxel."""
    columns = max(1, TILE // (ROWS_AT_A_TIME * shape[2]))
    starts = product(range(0, shape[0], ROWS_AT_A_TIME), range(0, shape[1], columns))
    return ((slice(row, row + ROWS_AT_A_TIME), slice(column, column + columns)) for row, column in starts)


def _extent(source: _Source) -> _Range:
    extent = _Range()
    for part in source.parts():
        extent.add(part if source.is_plain else source.values(part))
    return extent


def _fit(source: _Source, extent: _Range) -> _Fit | None:
    """Choose the scaling that float32 needs for these values; None for nearly all images."""
    peak, size = max(abs(extent.low), abs(extent.high)), source.stored.size
    if source.is_whole and peak <= 2**24:
        return None  # float32 represents these integers exactly
    unit = float(2.0 ** (np.frexp(peak)[1] - 1))
    if extent.low == extent.high:
        return _Fit(unit, extent.low / unit, 0.0) if peak > MAX_FLOAT32_SQUARE else None
    rounding = float(np.spacing(np.float32(min(peak, MAX_FLOAT32_SQUARE)))) / 2
    # two voxels at the ends of the range and all others in the middle: the smallest possible deviation
    least = (extent.high - extent.low) / np.sqrt(2 * size)
    if peak <= MAX_FLOAT32_SQUARE and rounding <= MAX_ROUNDING_STD * least:
        return None
    parts = [*source.parts()]
    # in units of the peak: squares do not overflow
    mean = float(sum((source.values(p, extent) / unit).sum() for p in parts) / size)
    std = float(np.sqrt(sum(((source.values(p, extent) / unit - mean) ** 2).sum() for p in parts) / size))
    return _Fit(unit, mean, std) if peak > MAX_FLOAT32_SQUARE or rounding > MAX_ROUNDING_STD * std * unit else None


def _warn_rounding(extent: _Range, size: int, fit: _Fit | None) -> list[str]:
    warnings, count = [], sum(extent.odd.values())
    if count:
        kinds = ", ".join(f"{n} {name}" for name, n in extent.odd.items() if n)
        repair = (
            f"NaN and -Inf were set to the smallest finite value, {extent.low:g}, +Inf to the largest, {extent.high:g}"
        )
        warnings.append(f"{count} of {size} voxels are not finite ({kinds}); {repair}")
    if extent.low == extent.high:
        warnings.append("all voxels are 0" if extent.low == 0 else f"all voxels have one value, {extent.low:g}")
    if fit:
        mean, std = fit.mean * fit.unit, fit.std * fit.unit
        problem = f"float32 cannot hold these values well (mean {mean:.15g}, standard deviation {std:.9g})"
        formula = "(value - mean) / standard deviation was taken"
        warnings.append(f"{problem}; {formula}. Only bundles that normalise intensity are served")
    return warnings
