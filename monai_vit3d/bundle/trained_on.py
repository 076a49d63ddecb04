"""``trained_on`` of a bundle's metadata.json: ranges over its training cases, with which new cases are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, ...]  # where in ``trained_on``, as ("labels", "1", "volume_ml")
ValueRange = tuple[float, float]


@dataclass(frozen=True)
class TrainedOn:
    """The lowest and the highest value of each measured quantity over a bundle's training cases.

    Args:
        cases: number of cases measured; 0 where the bundle does not say.
        ranges: by place in ``trained_on``.
        orientations: axis codes such as ``"RAS"`` of the training files, of a bundle that does not turn its input.
    """

    cases: int = 0
    ranges: Mapping[Key, ValueRange] = field(default_factory=dict)
    orientations: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Return whether any quantity of that name was measured."""
        return any(name in key for key in self.ranges)


def read_trained_on(content: Any) -> TrainedOn:
    """Read ``trained_on``; a quantity that is left out is not compared, other entries are passed over.

    Args:
        content: as metadata.json has it; None where it has none.

    Raises:
        ValueError: it is malformed; says where.
    """
    if content is None:
        return TrainedOn()
    if not isinstance(content, dict):
        raise ValueError(f"trained_on: {type(content).__name__}; an object is expected, as `vit3d measure` writes it")
    ranges = dict(_ranges(content, ("trained_on",)))
    orientations = content.get("orientation", [])
    if not isinstance(orientations, list) or not all(isinstance(codes, str) for codes in orientations):
        raise ValueError(f"trained_on/orientation: {orientations!r}; a list such as ['RAS'] is expected")
    cases = content.get("cases", 0)
    if type(cases) is not int or cases < 0:
        raise ValueError(f"trained_on/cases: {cases!r}; a whole number is expected")
    return TrainedOn(cases, {key[1:]: pair for key, pair in ranges.items()}, tuple(orientations))


def _ranges(content: Mapping[str, Any], place: Key) -> Iterable[tuple[Key, ValueRange]]:
    for name, value in content.items():
        key = (*place, str(name))
        if isinstance(value, dict) and len(key) < 5:  # deeper, nothing is ever measured
            yield from _ranges(value, key)
        elif isinstance(value, list) and key != ("trained_on", "orientation"):
            yield key, _range(value, "/".join(key))


def _range(value: list[Any], place: str) -> ValueRange:
    numbers = [n for n in value if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]
    if len(value) != 2 or len(numbers) != 2 or numbers[0] > numbers[1]:
        raise ValueError(f"{place}: {value!r}; [lowest, highest] is expected")
    return float(numbers[0]), float(numbers[1])


def merge_ranges(cases: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the measured values of all cases, nested alike, into ranges; a case may lack a quantity.

    Args:
        cases: as the functions of :mod:`monai_vit3d.pipeline.measures` give them.

    Returns:
        ``[lowest, highest]`` in place of each value, rounded outwards to four significant digits.
    """
    merged: dict[str, Any] = {}
    for case in cases:
        _widen(merged, case)
    return _rounded(merged)


def _widen(merged: dict[str, Any], case: Mapping[str, Any]) -> None:
    for name, value in case.items():
        if isinstance(value, Mapping):
            _widen(merged.setdefault(name, {}), value)
        else:
            low, high = merged.get(name, (value, value))
            merged[name] = (min(low, value), max(high, value))


def _rounded(merged: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, Mapping) else [_outwards(value[0], -1), _outwards(value[1], 1)]
        for name, value in merged.items()
    }


def _outwards(value: float, direction: int) -> float:
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    nearest = round(value / unit)
    if abs(nearest * unit - value) > 1e-9 * abs(value):
        nearest = math.floor(value / unit) if direction < 0 else math.ceil(value / unit)
    return float(f"{nearest * unit:.4g}")
