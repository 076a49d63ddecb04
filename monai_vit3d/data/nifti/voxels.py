"""Stored voxels to finite float32, whatever type they have, with little memory more than the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..volume import Array
from .stream import refusal

SLAB = 2**20  # voxels that are float64 at a time
HUGE = 1e15  # squares and sums of larger ones leave float32
ROUNDING = 0.01  # of the standard deviation; more would be seen


@dataclass
class _Range:
    """Finite extent of a volume, and how many voxels are not finite."""

    low: float = np.inf
    high: float = -np.inf
    odd: dict[str, int] = field(default_factory=lambda: {"NaN": 0, "+Inf": 0, "-Inf": 0})

    def add(self, values: Array) -> None:
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            for name, mask in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
                self.odd[name] += int(mask(values).sum())
            values = values[np.isfinite(values)]
            low, high = (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
        self.low, self.high = min(self.low, low), max(self.high, high)


@dataclass(frozen=True)
class _Source:
    """Stored voxels in the file's order, ``(N,)``, and what they stand for."""

    stored: Array
    slope: float
    inter: float

    @property
    def is_plain(self) -> bool:
        return (self.slope, self.inter) == (1.0, 0.0)

    @property
    def is_whole(self) -> bool:
        return self.is_plain and self.stored.dtype.kind != "f"

    def values(self, part: slice, extent: _Range | None = None) -> Array:
        """Scaled values of a part, float64; with an extent, those that are not finite are repaired."""
        values = self.stored[part].astype(np.float64)
        if not self.is_plain:
            values *= self.slope
            values += self.inter
        if extent is not None and any(extent.odd.values()):
            np.nan_to_num(values, copy=False, nan=extent.low, posinf=extent.high, neginf=extent.low)
        return values


@dataclass(frozen=True)
class _Fit:
    """What brings values into float32's reach: ``(value / unit - mean) / std``; the unit is a power of 2."""

    unit: float
    mean: float
    std: float

    def apply(self, values: Array) -> Array:
        values /= self.unit
        values -= self.mean
        values /= self.std or 1.0
        return values


def to_float32(raw: Array, slope: float, inter: float, path: str | Path) -> tuple[Array, list[str]]:
    """Scaled voxels as float32.

    NaN and -Inf become the smallest finite value, +Inf the largest. Values that float32 cannot serve (above 1e15, or
    so far from 0 that rounding exceeds 1 % of their standard deviation) are shifted and scaled in float64 first.

    Args:
        raw: stored values of any real type and byte order; float32 of native order is changed in place.
        slope: of the values.
        inter: added to slope times value, as nibabel does.
        path: the file, for messages.

    Returns:
        float32 of the same shape, Fortran order, and a sentence for each oddity.

    Raises:
        ImageError: no voxel is finite.
    """
    source = _Source(raw.reshape(-1, order="F"), slope, inter)  # a view of what the file holds
    keeps = source.is_plain and raw.dtype == np.float32 and raw.dtype.isnative
    extent = _extent(source)
    if extent.low > extent.high:
        raise refusal(path, f"none of {raw.size} voxels is finite; an image is needed", "Export it again.")
    fit = _fit(source, extent)
    out = raw if keeps else np.empty(raw.shape, np.float32, order="F")
    if not keeps or fit or any(extent.odd.values()):
        result = out.reshape(-1, order="F")
        for part in _parts(raw.size):
            values = source.values(part, extent)
            result[part] = fit.apply(values) if fit else values
    return out, _told(extent, raw.size, fit)


def _parts(size: int) -> Iterator[slice]:
    return (slice(first, first + SLAB) for first in range(0, size, SLAB))


def _extent(source: _Source) -> _Range:
    extent = _Range()
    for part in _parts(source.stored.size):
        extent.add(source.stored[part] if source.is_plain else source.values(part))
    return extent


def _fit(source: _Source, extent: _Range) -> _Fit | None:
    """What float32 needs to serve these values; None, for nearly all images, is nothing."""
    peak, size = max(abs(extent.low), abs(extent.high)), source.stored.size
    if source.is_whole and peak <= 2**24:
        return None  # float32 holds these integers as they are
    unit = float(2.0 ** (np.frexp(peak)[1] - 1))
    if extent.low == extent.high:
        return _Fit(unit, extent.low / unit, 0.0) if peak > HUGE else None
    rounding = float(np.spacing(np.float32(min(peak, HUGE)))) / 2
    # two voxels at the ends of the range and all others amid: no volume of this range deviates less
    least = (extent.high - extent.low) / np.sqrt(2 * size)
    if peak <= HUGE and rounding <= ROUNDING * least:
        return None
    parts = [*_parts(size)]
    # in units of the peak: squares do not overflow
    mean = float(sum((source.values(p, extent) / unit).sum() for p in parts) / size)
    std = float(np.sqrt(sum(((source.values(p, extent) / unit - mean) ** 2).sum() for p in parts) / size))
    return _Fit(unit, mean, std) if peak > HUGE or rounding > ROUNDING * std * unit else None


def _told(extent: _Range, size: int, fit: _Fit | None) -> list[str]:
    warnings, count = [], sum(extent.odd.values())
    if count:
        kinds = ", ".join(f"{n} {name}" for name, n in extent.odd.items() if n)
        repair = (
            f"NaN and -Inf were set to the smallest finite value, {extent.low:g}, +Inf to the largest, {extent.high:g}"
        )
        warnings.append(f"{count} of {size} voxels are not finite ({kinds}); {repair}, {extent.high:g}")
    if extent.low == extent.high:
        warnings.append("all voxels are 0" if extent.low == 0 else f"all voxels have one value, {extent.low:g}")
    if fit:
        mean, std = fit.mean * fit.unit, fit.std * fit.unit
        told = f"float32 cannot hold these values well (mean {mean:.15g}, standard deviation {std:.9g})"
        formula = "(value - mean) / standard deviation was taken"
        warnings.append(f"{told}; {formula}. Only bundles that normalise intensity are served")
    return warnings
