"""Find cases whose volumes are unlike those of the other cases of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, MutableMapping
from typing import Any

LARGEST_SCORE = 3.5  # of a robust z-score; Iglewicz & Hoaglin, "How to detect and handle outliers" (1993)
SMALLEST_SHARE = 0.1  # of the median: among scans of one subject, a per cent more is nothing to look at
FEWEST_CASES = 5


def note_volume_outliers(records: Iterable[MutableMapping[str, Any]]) -> None:
    """Write into the record of each case that has labels, as ``outliers``, which of them are outliers of the run.

    An outlier has a score 0.6745 (x - median) / MAD beyond 3.5, MAD being the median absolute deviation, and lies a
    tenth of the median or more from it. Labels of fewer than five cases, and those whose MAD is 0, have none.

    A rare anatomy is no error, other cases of the run decide what is rare, and chance alone gives an outlier of a
    label to one in five runs of five cases and to one in ten runs of twenty and more. So these are hints where to
    look, not ``suspicious``, which ``strict`` makes failures.

    Args:
        records: ``files`` of run.json, of all shards.
    """
    by_label: dict[tuple[int, str], list[tuple[MutableMapping[str, Any], float]]] = {}
    for record in records:
        if record.get("stats"):
            record["outliers"] = []
        for row in record.get("stats") or ():
            by_label.setdefault((row["label"], row["name"]), []).append((record, row["volume_ml"]))
    for (_, name), cases in by_label.items():
        median = statistics.median(volume for _, volume in cases)
        mad = statistics.median(abs(volume - median) for _, volume in cases)
        if len(cases) < FEWEST_CASES or not mad:
            continue
        for record, volume in cases:
            score = 0.6745 * (volume - median) / mad
            if abs(score) > LARGEST_SCORE and abs(volume - median) >= SMALLEST_SHARE * median:
                apart = f"{abs(score):.1f} robust SD {'above' if score > 0 else 'below'} this run's median"
                record["outliers"].append(f"volume of {name}: {_ml(volume)} ml, {apart} {_ml(median)} ml")


def _ml(volume: float) -> str:
    """Format with three digits, or all before the point."""
    return f"{volume:.3g}" if volume < 1000 else f"{volume:.0f}"
