"""Write an evaluation as tables, ``cases.csv`` and ``classes.csv``, and whole as ``summary.json``, and read that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.csv_files import write_csv
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.printable import printable
from monai_vit3d.metrics.components import Detection
from monai_vit3d.metrics.segmentation import LabelScores
from monai_vit3d.pipeline.folder import versions

from .pairs import EvaluationCase
from .scoring import ScoredCase
from .summary import METRICS, ClassSummary
from .summary_file import read_summary, table_cell, write_summary

if TYPE_CHECKING:
    from .results import Evaluation

_SCORES = tuple(field.name for field in fields(LabelScores))
_DETECTION = ("precision", "recall", "f1")
_NUMBER = (int, float, type(None))
_ROW = dict.fromkeys(_SCORES, _NUMBER) | {"label": int, "name": str}
_SHAPE = {"nsd_mm": (int, float), "cases": [{"name": str, "subject": str, "error": str, "scores": [_ROW]}]}


def write_tables(evaluation: Evaluation, output: Path) -> None:
    """Write all tables; spreadsheets open no name as a formula.

    Args:
        evaluation: what is written.
        output: the folder.
    """
    write_csv(_case_rows(evaluation.scored), output / "cases.csv")
    write_csv(_class_rows(evaluation.classes), output / "classes.csv")
    write_summary(_content(evaluation), output)


def read_scored(path: Path, nsd_mm: float) -> dict[str, ScoredCase]:
    """Read the scores of an earlier evaluation, by the name of the case.

    Args:
        path: its ``summary.json``.
        nsd_mm: tolerance of the surface Dice that it must have.

    Raises:
        UsageError: the file is no summary, or of another tolerance.
    """
    known_mm, scored = read_summary(
        path, _SHAPE, lambda content: (content["nsd_mm"], [_scored(one) for one in content["cases"]])
    )
    if known_mm != nsd_mm:
        raise UsageError(
            f"{printable(path)}: its surface Dice is at {known_mm:g} mm, nsd_mm={nsd_mm:g} here; a comparison "
            "needs one tolerance. Give the same nsd_mm=."
        )
    return {one.case.name: one for one in scored}


def detection_scores(detection: Detection) -> list[float]:
    """Return precision, recall and F1."""
    return [getattr(detection, name) for name in _DETECTION]


def _case_rows(scored: Sequence[ScoredCase]) -> list[list[str]]:
    header = ["case", "subject", "label", "class", *_SCORES[2:], "volume_difference_ml", *_DETECTION, "error"]
    rows = []
    for one in scored:
        first = [one.case.name, one.case.subject]
        if one.error:
            rows.append([*first, *[""] * (len(header) - 3), one.error])
        for row in one.scores:
            scores = [getattr(row, name) for name in _SCORES[2:]]
            numbers = [*scores, row.volume_difference_ml, *detection_scores(row.detection)]
            rows.append([*first, str(row.label), row.name, *map(table_cell, numbers), ""])
    return [header, *rows]


def _class_rows(classes: Sequence[ClassSummary]) -> list[list[str]]:
    statistics = [f"{metric.name}_{kind}" for metric in METRICS for kind in ("mean", "low", "high", "median")]
    counts = ["cases", "absent", "missed", "made_up"]
    header = ["class", "label", *counts, *statistics, *Detection._fields, *_DETECTION]
    rows = []
    for one in classes:
        numbers: list[Any] = [getattr(one, name) for name in counts]
        for metric in METRICS:
            known = metric.name in one.means
            numbers += [*one.means[metric.name], one.medians[metric.name]] if known else [math.nan] * 4
        numbers += [*one.detection, *detection_scores(one.detection)]
        rows.append([one.name, "" if one.label is None else str(one.label), *map(table_cell, numbers)])
    return [header, *rows]


def _content(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "title": evaluation.title,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "nsd_mm": evaluation.nsd_mm,
        "notes": list(evaluation.notes),
        "classes": [_class_content(one) for one in evaluation.classes],
        "against": evaluation.against,
        "comparison": {
            group: {metric: pair._asdict() | {"difference": pair.difference._asdict()} for metric, pair in row.items()}
            for group, row in evaluation.comparison.items()
        },
        "cases": [_case_content(one) for one in evaluation.scored],
    }


def _class_content(one: ClassSummary) -> dict[str, Any]:
    return asdict(one) | {
        "means": {metric: interval._asdict() for metric, interval in one.means.items()},
        "detection": one.detection._asdict() | dict(zip(_DETECTION, detection_scores(one.detection))),
    }


def _case_content(one: ScoredCase) -> dict[str, Any]:
    files = {"prediction": one.case.prediction, "label": one.case.label, "image": one.case.image}
    return {
        "name": one.case.name,
        "subject": one.case.subject,
        **{key: None if path is None else str(path) for key, path in files.items()},
        "error": one.error,
        "scores": [asdict(row) for row in one.scores],
    }


def _scored(content: Mapping[str, Any]) -> ScoredCase:
    case = EvaluationCase(
        content["name"], Path(content["prediction"]), Path(content["label"]), None, content["subject"]
    )
    rows: list[dict[str, Any]] = [
        {key: math.nan if value is None else value for key, value in row.items()} for row in content["scores"]
    ]
    return ScoredCase(case, tuple(LabelScores(**row) for row in rows), content["error"])
