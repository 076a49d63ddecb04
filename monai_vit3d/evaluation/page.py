"""Write the page of an evaluation: classes with intervals, a strip plot, and the cases, worst first, with pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.errors import Vit3dError
from monai_vit3d.data.files import write_text_atomic
from monai_vit3d.metrics.bootstrap import Interval
from monai_vit3d.pipeline.folder import versions
from monai_vit3d.pipeline.report.page import render_page
from monai_vit3d.visualize.colours import label_colour

from .pictures import draw_case
from .scoring import ScoredCase
from .summary import METRICS, MetricRow
from .tables import detection_scores

if TYPE_CHECKING:
    from .results import Evaluation

DRAWN = 40  # worst cases that have a picture; about 150 KB each
_LISTED = 1000  # cases in the table at the end; cases.csv has all
_JITTER = (0, 3, -3, 5, -5, 1, -1, 4, -4, 2, -2)  # pixels by which dots of a strip are moved apart

Row = dict[str, Any]


def write_page(evaluation: Evaluation, output: Path) -> None:
    """Write ``report.html``: one file without scripts that needs nothing from the network.

    Args:
        evaluation: what is written.
        output: the folder.
    """
    scored = sorted((one for one in evaluation.scored if not one.error), key=lambda one: one.suspicion)
    compared = [metric for metric in METRICS if metric.compared]
    page = render_page(
        files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"),
        title=evaluation.title,
        facts=_facts(evaluation),
        counts=[("done", f"{len(scored)} cases"), ("failed", f"{len(evaluation.failed)} failed")],
        warnings=list(evaluation.notes),
        failures=[{"name": one.case.name, "error": one.error} for one in evaluation.failed],
        metrics=[_title(metric, evaluation) for metric in METRICS],
        classes=_classes(evaluation),
        strips=_strips(scored),
        against=evaluation.against,
        compared=[_title(metric, evaluation) for metric in compared],
        comparison=_comparison(evaluation, compared),
        drawn=[_drawn(one, evaluation) for one in scored[:DRAWN]],
        rest=[_case(one) for one in scored[DRAWN : DRAWN + _LISTED]],
        unlisted=max(0, len(scored) - DRAWN - _LISTED),
    )
    write_text_atomic(page, output / "report.html")


def _title(metric: MetricRow, evaluation: Evaluation) -> str:
    return metric.title.format(mm=evaluation.nsd_mm)


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    installed = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [("Compared with", evaluation.against)] * bool(evaluation.against) + [("Versions", installed)]


def _classes(evaluation: Evaluation) -> list[Row]:
    return [
        {
            "name": one.name,
            "colour": _colour(one.label),
            "cases": one.cases,
            "missed": one.missed,
            "made_up": one.made_up,
            "cells": [
                _statistics(one.means[m.name], one.medians[m.name], m.digits) if m.name in one.means else ()
                for m in METRICS
            ],
            "detection": [number_text(value, 2) for value in detection_scores(one.detection)],
        }
        for one in evaluation.classes
    ]


def _statistics(mean: Interval, median: float, digits: int) -> tuple[str, str, str]:
    """Format mean, interval and median, each on a line of its own."""
    text, _, interval = interval_text(mean, digits).partition(" ")
    return text, interval, f"median {number_text(median, digits)}"


def _comparison(evaluation: Evaluation, metrics: Sequence[MetricRow]) -> list[Row]:
    return [
        {
            "name": group,
            "cells": [
                {
                    "difference": interval_text(row[metric.name].difference, metric.digits, signed=True),
                    "counts": f"{row[metric.name].higher} higher, {row[metric.name].lower} lower",
                    "p": number_text(row[metric.name].p, 3),
                }
                for metric in metrics
            ],
        }
        for group, row in evaluation.comparison.items()
    ]


def _strips(scored: Sequence[ScoredCase]) -> list[Row]:
    """List each class's dots of a strip: place in percent of the width, offset in pixels, and what they stand for."""
    strips = []
    for column in zip(*(one.scores for one in scored)):
        dots = [
            {"x": round(100 * row.dice, 2), "y": _JITTER[i % len(_JITTER)], "text": f"{one.case.name}: {row.dice:.3f}"}
            for i, (one, row) in enumerate(zip(scored, column))
            if not math.isnan(row.dice)
        ]
        median = sorted(dot["x"] for dot in dots)[len(dots) // 2] if dots else None
        strips.append({"name": column[0].name, "colour": _colour(column[0].label), "dots": dots, "median": median})
    return strips


def _drawn(one: ScoredCase, evaluation: Evaluation) -> Row:
    try:
        source = draw_case(one.case)
    except (Vit3dError, OSError):  # moved or changed since it was scored
        source = ""
    rows = [
        {
            "name": row.name,
            "colour": _colour(row.label),
            "absent": math.isnan(row.dice),
            "cells": [number_text(getattr(row, metric.name), metric.digits) for metric in METRICS],
            "volumes": f"{row.volume_ml:.4g} / {row.reference_ml:.4g}",
            "components": f"{row.true_positives} / {row.false_positives} / {row.false_negatives}",
        }
        for row in one.scores
    ]
    return {**_case(one), "src": source, "rows": rows}


def _case(one: ScoredCase) -> Row:
    lowest, distance = one.suspicion
    return {
        "name": one.case.name,
        "dice": number_text(one.mean("dice"), 3),
        "lowest": number_text(lowest, 3),
        "hd95": number_text(-distance, 2),
    }


def _colour(label: int | None) -> str:
    return "" if label is None else "rgb({}, {}, {})".format(*label_colour(label))


def interval_text(interval: Interval, digits: int, signed: bool = False) -> str:
    """Format ``0.873 [0.850, 0.891]``, of one case the mean alone; a dash where it is undefined."""
    mean = number_text(interval.mean, digits, signed)
    if math.isnan(interval.low):
        return mean
    return f"{mean} [{number_text(interval.low, digits, signed)}, {number_text(interval.high, digits, signed)}]"


def number_text(value: float, digits: int, signed: bool = False) -> str:
    """Format a number; a dash where it is undefined."""
    if not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
