"""Write the evaluation of a classifier or regressor: tables, a summary in JSON, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_vit3d.data.csv_files import write_csv
from monai_vit3d.data.files import write_text_atomic
from monai_vit3d.metrics.bootstrap import Interval
from monai_vit3d.metrics.one_vs_rest import predicted_classes
from monai_vit3d.pipeline.folder import versions
from monai_vit3d.pipeline.report.page import render_page

from .page import number_text
from .summary_file import table_cell, write_summary

if TYPE_CHECKING:
    from .volumes import AnsweredCase, VolumeEvaluation

_LISTED = 1000  # cases on the page; cases.csv has all


def write_volume_tables(evaluation: VolumeEvaluation, output: Path) -> None:
    """Write ``cases.csv``, ``classes.csv`` and ``summary.json``.

    Args:
        evaluation: what came out.
        output: the folder to write to.
    """
    names = evaluation.class_names
    header = ["case", "subject", "label", "prediction", *(f"probability_{name}" for name in names), "error"]
    rows = []
    for case in evaluation.cases:
        numbers = [f"{value:.6g}" for value in case.answer] if names else []
        numbers += [""] * (len(names) - len(numbers))
        texts = [_text(evaluation, case.label), _predicted(evaluation, case)]
        rows.append([case.name, case.subject, *texts, *numbers, case.error])
    write_csv([header, *rows], output / "cases.csv")
    scores = list(next(iter(evaluation.rows.values())))
    columns = [f"{score}_{kind}" if kind else score for score in scores for kind in ("", "low", "high")]
    lines = [
        [name, str(evaluation.count(name)), *(table_cell(value) for score in scores for value in row[score])]
        for name, row in evaluation.rows.items()
    ]
    write_csv([["class", "cases", *columns], *lines], output / "classes.csv")
    content = {
        "title": evaluation.title,
        "versions": versions(),
        "notes": list(evaluation.notes),
        "scores": _plain(evaluation.rows),
        "against": evaluation.against,
        "differences": _plain(evaluation.differences),
        "shared_cases": evaluation.shared,
        "cases": [vars(case) | {"answer": list(case.answer)} for case in evaluation.cases],
    }
    write_summary(content, output)


def _plain(rows: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, dict[str, float]]]:
    """Write intervals as dictionaries."""
    return {name: {score: interval._asdict() for score, interval in row.items()} for name, row in rows.items()}


def write_volume_page(evaluation: VolumeEvaluation, output: Path) -> None:
    """Write ``report.html``: scores, which classes were taken for which, and the cases, worst first.

    Args:
        evaluation: what came out.
        output: the folder to write to.
    """
    worst = sorted(evaluation.answered, key=lambda case: -case.loss)
    header, *rows = evaluation.table()
    page = render_page(
        files(__package__).joinpath("volumes.html.j2").read_text(encoding="utf-8"),
        title=evaluation.title,
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        counts=[("done", f"{len(evaluation.answered)} cases"), ("failed", f"{len(evaluation.failed)} failed")],
        notes=list(evaluation.notes),
        failures=[{"name": case.name, "error": case.error} for case in evaluation.failed],
        header=header,
        rows=rows,
        against=evaluation.against,
        shared=evaluation.shared,
        comparison=evaluation.comparison(),
        names=list(evaluation.class_names),
        confusion=_confusion(evaluation),
        loss="1 minus the probability of the label" if evaluation.class_names else "Error",
        cases=[
            [case.name, _text(evaluation, case.label), _predicted(evaluation, case), number_text(case.loss, 3)]
            for case in worst[:_LISTED]
        ],
        unlisted=max(0, len(worst) - _LISTED),
    )
    write_text_atomic(page, output / "report.html")


def _confusion(evaluation: VolumeEvaluation) -> list[list[int]]:
    """Count the cases of each class (rows) that were taken for each class (columns)."""
    counts = np.zeros([len(evaluation.class_names)] * 2, int)
    if evaluation.class_names:
        for case in evaluation.answered:
            counts[int(case.label), predicted_classes(np.array([case.answer]))[0]] += 1
    table: list[list[int]] = counts.tolist()
    return table


def _text(evaluation: VolumeEvaluation, value: float) -> str:
    """Name a class, or format a value."""
    return evaluation.class_names[int(value)] if evaluation.class_names else f"{value:.6g}"


def _predicted(evaluation: VolumeEvaluation, case: AnsweredCase) -> str:
    if case.error:
        return ""
    single = not evaluation.class_names
    return _text(evaluation, case.answer[0] if single else predicted_classes(np.array([case.answer]))[0])
