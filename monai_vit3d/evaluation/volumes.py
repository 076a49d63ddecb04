"""Evaluate a classifier's or regressor's answers to whole volumes against the labels of a split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import read_text_file
from monai_vit3d.data.json_shape import ANY_KEY
from monai_vit3d.data.printable import printable
from monai_vit3d.metrics.bootstrap import Interval
from monai_vit3d.metrics.one_vs_rest import ALL_CLASSES, score_classes, score_values

from .page import interval_text
from .summary_file import SUMMARY, find_summary, read_summary
from .volume_report import write_volume_page, write_volume_tables

_CASE = {"name": str, "subject": str, "label": float, "answer": [float], "error": str}
_SHAPE = {"scores": {ANY_KEY: {}}, "cases": [_CASE]}
TITLES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "mae": "Mean absolute error",
    "r2": "R²",
}


@dataclass(frozen=True)
class AnsweredCase:
    """A volume with its label and what was predicted.

    Args:
        name: of the case.
        subject: whose it is.
        label: number of the class, or the value.
        answer: probability of each class, or the predicted value alone; empty where there is none.
        error: why there is none; else empty.
    """

    name: str
    subject: str
    label: float
    answer: tuple[float, ...] = ()
    error: str = ""

    @property
    def loss(self) -> float:
        """One minus the true class's probability, or the error of the value; it orders the page."""
        single = len(self.answer) == 1
        return abs(self.answer[0] - self.label) if single else 1 - self.answer[int(self.label)]


@dataclass(frozen=True)
class VolumeEvaluation:
    """The result of an evaluation of answers to whole volumes.

    Args:
        title: what was evaluated.
        class_names: in the order of the probabilities; empty for a regression.
        cases: all, in the order of the split.
        rows: scores with intervals, by class; of a regression under ``"value"``.
        page: the page that was written.
        notes: sentences on how it was done.
        against: the other evaluation; empty without one.
        differences: scores minus the other evaluation's, of the cases that both answered, as ``rows``.
        shared: how many cases those are.
    """

    title: str
    class_names: Sequence[str]
    cases: Sequence[AnsweredCase]
    rows: Mapping[str, Mapping[str, Interval]]
    page: Path
    notes: Sequence[str] = ()
    against: str = ""
    differences: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    shared: int = 0

    @property
    def answered(self) -> list[AnsweredCase]:
        """The cases that have an answer."""
        return [case for case in self.cases if not case.error]

    @property
    def failed(self) -> list[AnsweredCase]:
        """The cases without an answer."""
        return [case for case in self.cases if case.error]

    def count(self, name: str) -> int:
        """Count the answered cases of a class, or all of them."""
        if name not in self.class_names:
            return len(self.answered)
        return sum(int(case.label) == list(self.class_names).index(name) for case in self.answered)

    def table(self) -> list[list[str]]:
        """Return the scores as rows of texts, the header first."""
        scores = list(next(iter(self.rows.values()), {}))
        header = ["class" if self.class_names else "", "cases", *(TITLES[score] for score in scores)]
        texts = {name: [interval_text(row[score], 3) for score in scores] for name, row in self.rows.items()}
        return [header, *([name, str(self.count(name)), *cells] for name, cells in texts.items())]

    def comparison(self) -> list[list[str]]:
        """Return the differences as rows of texts, the header first; none without another evaluation."""
        scores = list(next(iter(self.differences.values()), {}))
        header = ["class" if self.class_names else "", *(TITLES[score] for score in scores)]
        rows = [
            [name, *(interval_text(row[score], 3, signed=True) for score in scores)]
            for name, row in self.differences.items()
        ]
        return [header, *rows] if rows else []


def evaluate_volumes(
    items: Iterable[tuple[Mapping[str, Any], Path]],
    class_names: Sequence[str],
    title: str,
    output: Path,
    against: str | Path | None = None,
) -> VolumeEvaluation:
    """Score answers, and write ``cases.csv``, ``classes.csv``, ``summary.json`` and ``report.html``.

    Args:
        items: cases of the split, and the folder with the ``run.json`` that has their predictions.
        class_names: in the order of the class numbers; empty for a regression.
        title: what is evaluated.
        output: the folder to write to.
        against: compare with this, paired by case: the folder of another evaluation, or of a bundle that has one.

    Raises:
        UsageError: no case has an answer, or ``against`` has no evaluation of these cases and classes.
    """
    cases = _answered(items, class_names)
    answered = [case for case in cases if not case.error]
    if not answered:
        raise UsageError(f"{title}: no case was answered, the first because: {cases[0].error}")
    rows, differences, shared = _scores(answered, class_names), {}, 0
    if against is not None:
        others = _other_answers(Path(against), answered, [*rows])
        both = [case for case in answered if case.name in others]
        differences, shared = _scores(both, class_names, [others[case.name] for case in both]), len(both)
    page, notes = output / "report.html", _notes(class_names)
    evaluation = VolumeEvaluation(title, class_names, cases, rows, page, notes, str(against or ""), differences, shared)
    write_volume_tables(evaluation, output)
    write_volume_page(evaluation, output)
    return evaluation


def _scores(
    cases: Sequence[AnsweredCase], class_names: Sequence[str], minus: Sequence[Sequence[float]] | None = None
) -> dict[str, Mapping[str, Interval]]:
    """Score answers, or their differences to other answers to the same cases."""
    answers = _array([case.answer for case in cases], class_names)
    others = None if minus is None else _array(minus, class_names)
    labels, subjects = [case.label for case in cases], [case.subject for case in cases]
    if class_names:
        return dict(score_classes(answers, labels, class_names, subjects, others))
    return {"value": score_values(answers, labels, subjects, others)}


def _array(answers: Sequence[Sequence[float]], class_names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Stack probabilities (N, K), whose sums were rounded to float32, or values (N,)."""
    array = np.array(answers, np.float64)
    return array / array.sum(1, keepdims=True) if class_names else array[:, 0]


def _other_answers(folder: Path, cases: Sequence[AnsweredCase], rows: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Read another evaluation's answers to these cases, by name."""
    summary = find_summary(folder)
    if summary is None:
        raise UsageError(f"against={printable(folder)}: no {SUMMARY} there. Give the folder of another evaluation.")
    their_rows, their_cases = read_summary(
        summary, _SHAPE, lambda content: (content["scores"], [*map(_as_case, content["cases"])])
    )
    if list(their_rows) != list(rows):
        raise UsageError(
            f"against={printable(folder)}: {SUMMARY} scores other classes than {', '.join(rows)}. Give the "
            "folder of another evaluation of the same classes."
        )
    labels = {case.name: case.label for case in cases}
    others = {one.name: one.answer for one in their_cases if not one.error and labels.get(one.name) == one.label}
    if not others:
        raise UsageError(
            f"against={printable(folder)}: none of the {len(cases)} cases, such as {printable(cases[0].name)}, has an "
            "answer and the same label there. Give the folder of another evaluation of the same cases."
        )
    return others


def _as_case(content: Mapping[str, Any]) -> AnsweredCase:
    fields = ("name", "subject", "label", "error")
    return AnsweredCase(**{name: content[name] for name in fields}, answer=tuple(content["answer"]))


def _notes(class_names: Sequence[str]) -> tuple[str, ...]:
    how = "95 % bootstrap intervals, whole subjects drawn; the cases of all folds are scored together."
    if not class_names:
        return (how,)
    return (
        f"AUC and accuracy of {ALL_CLASSES} are MedMNIST's (AUC: mean over the classes, each against the rest; of two, "
        "that of the second), balanced accuracy and F1 the means over the classes. Of one class: this class or not.",
        how,
    )


def _answered(items: Iterable[tuple[Mapping[str, Any], Path]], class_names: Sequence[str]) -> list[AnsweredCase]:
    records: dict[Path, dict[str, Any]] = {}
    cases = []
    for item, folder in items:
        if folder not in records:
            content = json.loads(read_text_file(folder / "run.json"))
            records[folder] = {record["name"]: record for record in content["files"]}
        record = records[folder].get(item["name"], {})
        prediction = record.get("prediction")
        if prediction is None:
            error = str(record.get("error") or "no prediction")
            cases.append(AnsweredCase(item["name"], item["subject"], float(item["label"]), error=error))
            continue
        answer = [prediction[name] for name in class_names] if class_names else [*prediction.values()]
        cases.append(AnsweredCase(item["name"], item["subject"], float(item["label"]), tuple(map(float, answer))))
    return cases
