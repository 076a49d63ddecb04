"""Compare two runs of `vit3d predict`: volumes and overlap of the labels of every case that both have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.printable import printable
from monai_vit3d.metrics.segmentation import NSD_MM
from monai_vit3d.pipeline.record import load_about, load_records

from .pairs import EvaluationCase
from .results import OnCase
from .scoring import ScoredCase, score_cases
from .summary import ClassSummary, summarise


@dataclass(frozen=True)
class ComparedRun:
    """A run's folder, and what its record says.

    Args:
        folder: OUT of the run.
        about: what holds for the whole run.
        labels: the label map of each case that is done, by name.
        names: label value to name.
        lacking: why each other case of the record has no label map, by name.
    """

    folder: Path
    about: Mapping[str, Any]
    labels: Mapping[str, Path]
    names: Mapping[int, str]
    lacking: Mapping[str, str]


@dataclass(frozen=True)
class RunComparison:
    """The result of a comparison; in the scores, the first run is the prediction and the second the reference.

    Args:
        runs: both.
        scored: cases of both, least agreement first.
        classes: their summary.
        alone: of each case that one run alone has, which, A or B, and why the other has it not.
        page: the page that was written; None if nothing was.
    """

    runs: tuple[ComparedRun, ComparedRun]
    scored: list[ScoredCase]
    classes: list[ClassSummary]
    alone: Mapping[str, tuple[str, str]]
    page: Path | None = None

    @property
    def failed(self) -> list[ScoredCase]:
        """The cases that could not be compared."""
        return [one for one in self.scored if one.error]


def compare_runs(
    a: str | Path, b: str | Path, output: str | Path | None = None, on_case: OnCase = lambda case: None
) -> RunComparison:
    """Compare the label maps that two runs wrote, case by case and label by label.

    Cases of the two belong together that are of the same image, by its SHA-256 or else its path; those of other images
    by their names. A case goes by its name in the first run.

    OUT gets ``comparison.csv``, a row for each case and label with the volumes of both, their difference (A minus B),
    Dice and the 95 % Hausdorff distance, and ``report.html``, with the least agreement first.

    Args:
        a: OUT of the first run.
        b: OUT of the second.
        output: OUT of the comparison; None writes nothing.
        on_case: is given each case when it is compared.

    Raises:
        UsageError: a folder without a run's record or label maps, labels of other names, no common case, or ``output``
            is one of the two.

    Example:
        >>> compare_runs("out", "out_tta", "comparison").classes[0].means["dice"].mean  # doctest: +SKIP
    """
    from .compare_page import write_comparison

    if output is not None and Path(output).resolve() in (Path(a).resolve(), Path(b).resolve()):
        raise UsageError(f"output={printable(output)}: one of the runs; expected another folder, as each has a page.")
    first, second = runs = _read_run(Path(a)), _read_run(Path(b))
    names = _common_names(*runs)
    partners = _partners(*(run.about["files"] for run in runs))
    shared = {name: other for name, other in partners.items() if name in first.labels and other in second.labels}
    if not shared:
        raise UsageError(
            f"{printable(a)} and {printable(b)}: no case with labels in both; expected two runs over the same inputs."
        )
    cases = [
        EvaluationCase(name, first.labels[name], second.labels[other], _image(first.about, name))
        for name, other in shared.items()
    ]
    scored = sorted(score_cases(cases, names, NSD_MM, on_case), key=lambda one: (not one.error, one.suspicion))
    alone = _alone(first, second, "A", partners)
    alone |= _alone(second, first, "B", {other: name for name, other in partners.items()})
    page = None if output is None else Path(output) / "report.html"
    comparison = RunComparison(runs, scored, summarise(scored), dict(sorted(alone.items())), page)
    if output is not None:
        write_comparison(comparison, Path(output))
    return comparison


def _read_run(folder: Path) -> ComparedRun:
    records = load_records(folder)
    if not records:
        raise UsageError(f"{printable(folder)}: no run.json of a run; expected a folder that vit3d predict wrote.")
    labels = {name: path for name, record in records.items() if (path := _label_map(folder, record))}
    if not labels:
        raise UsageError(
            f"{printable(folder)}: no label maps of the cases in run.json; expected those of a bundle that labels "
            "volumes, beside it."
        )
    rows = [row for record in records.values() for row in record.get("stats") or ()]
    lacking = {name: _reason(record) for name, record in records.items() if name not in labels}
    about = {**load_about(folder), "files": records}
    return ComparedRun(folder, about, labels, {row["label"]: row["name"] for row in rows}, lacking)


def _label_map(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """Find the case's label file, also in a folder that was moved since; None if there is none."""
    output = Path(record.get("output") or "")
    relative = next(
        (name for name in record.get("outputs") or () if output.parts[-len(Path(name).parts) :] == Path(name).parts),
        None,
    )
    path = folder / relative if relative else None
    inside = path is not None and path.is_file() and path.resolve().is_relative_to(folder.resolve())
    return path if inside and record.get("stats") is not None else None


def _reason(record: Mapping[str, Any]) -> str:
    return f"{record['status']}: {record['error']}" if record.get("error") else "its label map is not there"


def _common_names(first: ComparedRun, second: ComparedRun) -> dict[int, str]:
    for value, name in first.names.items():
        other = second.names.get(value, name)
        if other != name:
            raise UsageError(
                f"label {value} is {name!r} in {printable(first.folder)} and {other!r} in {printable(second.folder)}; "
                "expected two runs whose labels mean the same, such as of one bundle."
            )
    return {**first.names, **second.names}


def _image(about: Mapping[str, Any], name: str) -> Path | None:
    """Find the input of a case, if it is one file and still there."""
    source = about["files"][name].get("input")
    return Path(source) if isinstance(source, str) and Path(source).is_file() else None


def _partners(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """Map names of the first run's cases to those of the second's, both given as records by name.

    Names are paths below the folder that a run's inputs share, so one image may have two. Of a property that several
    cases of a run share nothing follows.
    """
    partners: dict[str, str] = {}
    for key in ("input_sha256", "input", "name"):
        ours = _names_by(key, first, partners.keys())
        theirs = _names_by(key, second, partners.values())
        partners |= {ours[value]: theirs[value] for value in ours.keys() & theirs.keys()}
    return {name: partners[name] for name in first if name in partners}


def _names_by(key: str, records: Mapping[str, Any], without: Collection[str]) -> dict[str, str]:
    """Map what records have under a key to their names, unless several have the same."""
    names: dict[str, list[str]] = {}
    for name, record in records.items():
        if record.get(key) and name not in without:
            names.setdefault(str(record[key]), []).append(name)
    return {value: one for value, (one, *more) in names.items() if not more}


def _alone(
    run: ComparedRun, other: ComparedRun, letter: str, partners: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    names = [name for name in run.labels if partners.get(name) not in other.labels]
    no_such = "the other run has no such case"
    return {name: (letter, other.lacking.get(partners.get(name, ""), no_such)) for name in names}
