"""Run an evaluation: score the cases, compare with another evaluation, write the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.printable import printable
from monai_vit3d.metrics.bootstrap import PairedComparison
from monai_vit3d.metrics.segmentation import NSD_MM

from .pairs import EvaluationCase, predicted_files
from .scoring import ScoredCase, score_cases
from .summary import ClassSummary, compare_cases, summarise
from .summary_file import find_summary

OnCase = Callable[[ScoredCase], None]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation of label maps.

    Args:
        title: what was evaluated.
        nsd_mm: tolerance of the surface Dice in mm.
        scored: all cases, in the order given.
        classes: their summary.
        notes: sentences, such as on files without a partner.
        against: the other evaluation; empty without one.
        comparison: with it, by class and metric.
        page: the page that was written; None if nothing was.
    """

    title: str
    nsd_mm: float
    scored: Sequence[ScoredCase]
    classes: Sequence[ClassSummary]
    notes: Sequence[str] = ()
    against: str = ""
    comparison: Mapping[str, Mapping[str, PairedComparison]] = field(default_factory=dict)
    page: Path | None = None

    @property
    def failed(self) -> list[ScoredCase]:
        """The cases that could not be scored."""
        return [one for one in self.scored if one.error]


def evaluate_cases(
    cases: Sequence[EvaluationCase],
    names: Mapping[int, str],
    title: str,
    output: str | Path | None = None,
    nsd_mm: float = NSD_MM,
    against: str | Path | None = None,
    notes: Sequence[str] = (),
    on_case: OnCase = lambda case: None,
) -> Evaluation:
    """Score cases, compare them, and write ``cases.csv, classes.csv, summary.json, report.html``.

    Args:
        cases: predictions and labels.
        names: label value to name.
        title: what is evaluated.
        output: the folder to write to; None writes nothing.
        nsd_mm: tolerance of the surface Dice in mm.
        against: the folder of another evaluation, of a bundle that was evaluated, or of other predictions.
        notes: sentences for the page.
        on_case: is given each case when it is scored.

    Raises:
        UsageError: ``against`` has none of these cases, or ``nsd_mm`` is not positive.
    """
    from .page import write_page
    from .tables import write_tables

    others = {} if against is None else _other_scores(Path(against), cases, names, nsd_mm)
    scored = score_cases(cases, names, nsd_mm, on_case)
    comparison = compare_cases(scored, others) if others else {}
    page = None if output is None else Path(output) / "report.html"
    evaluation = Evaluation(title, nsd_mm, scored, summarise(scored), notes, str(against or ""), comparison, page)
    if output is not None:
        write_tables(evaluation, Path(output))
        write_page(evaluation, Path(output))
    return evaluation


def _other_scores(
    folder: Path, cases: Sequence[EvaluationCase], names: Mapping[int, str], nsd_mm: float
) -> dict[str, ScoredCase]:
    """Read, or make, the scores of the other side of a comparison, by the name of the case."""
    from .tables import read_scored

    summary = find_summary(folder)
    if summary is not None:
        others = read_scored(summary, nsd_mm)
    else:
        files = predicted_files(folder)
        both = [replace(case, prediction=files[case.name]) for case in cases if case.name in files]
        others = {one.case.name: one for one in score_cases(both, names, nsd_mm)}
    if not others.keys() & {case.name for case in cases}:
        raise UsageError(
            f"against={printable(folder)}: none of the {len(cases)} cases, such as {printable(cases[0].name)}, is "
            "there. Give the folder of another evaluation of the same cases, or of their predictions."
        )
    return others
