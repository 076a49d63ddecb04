"""Write the comparison of two runs: a table, and a page that shows where they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.csv_files import write_csv
from monai_vit3d.data.errors import Vit3dError
from monai_vit3d.pipeline.report.page import write_run_page
from monai_vit3d.visualize.colours import label_colour
from monai_vit3d.visualize.overlay import write_png

from .page import interval_text, number_text
from .pictures import draw_difference
from .scoring import ScoredCase

if TYPE_CHECKING:
    from .compare import ComparedRun, RunComparison

_DRAWN = 50  # cases that have a picture, those with the least agreement
_HEADER = ("case", "label", "name", "a_ml", "b_ml", "difference_ml", "dice", "hd95_mm", "error")


def write_comparison(comparison: RunComparison, output: Path) -> None:
    """Write ``comparison.csv`` and ``report.html``.

    Args:
        comparison: what is written.
        output: the folder.
    """
    write_csv([list(_HEADER), *_csv_rows(comparison)], output / "comparison.csv")
    records = [_record(one, output, i < _DRAWN) for i, one in enumerate(comparison.scored)]
    records += [
        {"name": name, "status": f"only in {letter}", "error": reason}
        for name, (letter, reason) in comparison.alone.items()
    ]
    first, second = comparison.runs
    write_run_page(
        "comparison.html.j2",
        records,
        {},
        output,
        title=f"{first.folder.name} and {second.folder.name}",
        facts=[("A", _about(first)), ("B", _about(second))],
        table=summary_table(comparison),
        agreement={one.case.name: _rows(one) for one in comparison.scored},
    )


def summary_table(comparison: RunComparison) -> list[list[str]]:
    """Return a row of texts a label, the header first: cases, means with 95 % intervals, and who has it alone."""
    header = ["label", "cases", "Dice", "A minus B ml", "only in A", "only in B"]
    rows = []
    for one in comparison.classes:
        bias = one.means.get("volume_difference_ml")
        difference = interval_text(bias, 3, signed=True) if bias is not None else ""
        dice = interval_text(one.means["dice"], 3)
        rows.append([one.name, str(one.cases), dice, difference, str(one.made_up), str(one.missed)])
    return [header, *rows]


def _csv_rows(comparison: RunComparison) -> Iterator[list[str]]:
    for one in comparison.scored:
        if one.error:
            yield [one.case.name, *[""] * (len(_HEADER) - 2), one.error]
        for row in one.scores:
            volumes = (row.volume_ml, row.reference_ml, row.volume_difference_ml)
            numbers = [f"{value:.6g}" if math.isfinite(value) else "" for value in (*volumes, row.dice, row.hd95_mm)]
            yield [one.case.name, str(row.label), row.name, *numbers, ""]
    for name, (letter, reason) in comparison.alone.items():
        yield [name, *[""] * (len(_HEADER) - 2), f"only in {letter}: {reason}"]


def _record(one: ScoredCase, output: Path, drawn: bool) -> dict[str, Any]:
    record = {"name": one.case.name, "status": "failed" if one.error else "done", "error": one.error}
    if drawn and not one.error:
        picture = PurePath("qc", f"{one.case.name}.png")
        try:
            write_png(draw_difference(one.case), output / picture)
        except (Vit3dError, OSError):
            return record  # it was read a moment ago: without a picture, the numbers stay
        record["picture"] = picture.as_posix()
    return record


def _rows(one: ScoredCase) -> list[dict[str, Any]]:
    """List the labels of a case that either run has, least agreement first."""
    present = sorted((row for row in one.scores if not math.isnan(row.dice)), key=lambda row: row.dice)
    return [
        {
            "name": row.name,
            "colour": "rgb({}, {}, {})".format(*label_colour(row.label)),
            "a_ml": row.volume_ml,
            "b_ml": row.reference_ml,
            "difference_ml": row.volume_difference_ml,
            "dice": number_text(row.dice, 3),
        }
        for row in present
    ]


def _about(run: ComparedRun) -> str:
    """Bundle, weights and what else tells two runs apart."""
    parts: Sequence[Any] = (
        run.folder,
        PurePath(str(run.about.get("bundle") or "")).name,
        f"weights {str(run.about.get('weights_sha256'))[:12]}…" if run.about.get("weights_sha256") else "",
        run.about.get("started"),
    )
    return ", ".join(str(part) for part in parts if part)
