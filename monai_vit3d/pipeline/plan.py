"""Plan which outputs a run will write, and check them before any work begins."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from monai_vit3d.data.earlier_outputs import has_record
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.passed_over import PassedOver
from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import reader_for

from .case import KINDS, LABEL_KINDS, Case
from .dicom_cases import split_series
from .inputs import find_images
from .passed_over_summary import describe_passed_over
from .paths import some

# at the top of OUT
RESERVED = (
    *("run.json", "report.html", "dataset_description.json"),
    *("stats.csv", "volumes.csv", "predictions.csv", "features.csv", "features.npz", "features.png"),
    *("labels.tsv", "labels.ctbl", "labels_itksnap.txt", "labels.lut", "dseg.tsv"),
)
_EXISTING = ("refuse", "resume", "overwrite")


@dataclass(frozen=True)
class Plan:
    """The cases of one shard, and where their outputs go.

    Args:
        cases: those of this shard.
        output: OUT.
        shard: ``(i, n)``, from 1.
        total: number of cases of all shards.
        outputs: kinds of output that each case has.
        passed_over: files in the inputs that are no case, of all shards.
        warnings: what is odd about the cases as a whole, a sentence each.
        include_labels: whether images that look like labels are cases, too.
        about_weights: a line on the weights that are run, if there is a choice.
    """

    cases: tuple[Case, ...]
    output: Path
    shard: tuple[int, int]
    total: int
    outputs: tuple[str, ...] = ("seg",)
    passed_over: tuple[PassedOver, ...] = ()
    warnings: tuple[str, ...] = ()
    include_labels: bool = False
    about_weights: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """List all files that may be written for the cases of this shard, pictures too."""
        return [
            self.output / path for case in self.cases for path in (*case.paths({*KINDS, *self.outputs}), case.picture)
        ]

    def table(self) -> str:
        """Write a line ``input -> outputs`` for each case, and their number."""
        lines = [
            f"{case.source} -> {', '.join(printable(self.output / case.path(kind)) for kind in self.outputs)}"
            for case in self.cases
        ]
        i, n = self.shard
        count = f"{len(self.cases)} of {self.total} cases (shard {i}/{n})" if n > 1 else f"{self.total} cases"
        return "\n".join([*lines, count])

    def notes(self) -> list[str]:
        """Write lines on files passed over, by reason, on other formats, and on what is odd about all cases."""
        lines = [*self.about_weights, *describe_passed_over(self.passed_over)]
        lines += [f"warning: {warning}" for warning in self.warnings]
        others: dict[str, list[str]] = {}
        for case in self.cases:
            reader = None if case.dicom else reader_for(case.images[0])
            if reader is not None and reader.converter:
                others.setdefault(reader.name, []).append(printable(case.images[0].name))
        return lines + [f"{name} is read, .nii.gz is written: {some(names)}" for name, names in others.items()]


def parse_shard(text: str) -> tuple[int, int]:
    """Parse ``"2/8"`` to ``(2, 8)``.

    Args:
        text: number of the shard, from 1, and of all shards.

    Raises:
        UsageError: something else, or a number outside 1 to that of all.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None:
        raise UsageError(f"shard={printable(text)}; expected I/N, from 1/N to N/N, such as 1/4.")
    shard = int(match[1]), int(match[2])
    _check_shard(shard)
    return shard


def plan_cases(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    shard: tuple[int, int] = (1, 1),
    outputs: Sequence[str] = ("seg",),
    existing: str = "refuse",
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
    seg: bool = True,
    channels: int = 1,
) -> Plan:
    """Find the cases of all inputs and decide where their outputs go. Nothing is written, and no image is read.

    Args:
        inputs: as for ``find_images``.
        output: OUT, the folder that the outputs go to; it need not exist.
        shard: ``(i, n)``: take every n-th case from the i-th on, from 1. All shards check all cases.
        outputs: kinds of output, of ``KINDS`` or as ``case.label_kind`` writes those of labels.
        existing: ``"refuse"``, ``"resume"`` or ``"overwrite"`` outputs that are there already.
        include_labels: as for ``find_images``.
        suffixes: as for ``find_images``.
        seg: whether the labels of DICOM series are written as a DICOM SEG, too.
        channels: how many each case has, as for ``find_images``.

    Raises:
        UsageError: an input or argument cannot be used; two cases have the same output, also where only upper and lower
            case or the Unicode form differ; an output would overwrite an input, or lies where it cannot be written;
            with ``"refuse"``, an output of this shard is there already.
    """
    output = Path(output)
    _check_shard(shard)
    _check_kinds(outputs, existing)
    _check_folder(output)
    inputs_found = find_images(inputs, output, include_labels=include_labels, suffixes=suffixes, channels=channels)
    split, no_volumes = split_series(inputs_found.cases)
    passed_over = (*inputs_found.passed_over, *no_volumes)
    if not split:
        head, *reasons = describe_passed_over(passed_over)
        raise UsageError(f"no case in the inputs; {head} {'; '.join(reasons)}. Give a folder with some.")
    cases = [replace(case, index=i, seg=seg) for i, case in enumerate(split)]
    _check_clashes(cases, outputs)
    _check_inputs_stay(inputs, cases, outputs, output)
    _check_places(cases, outputs, output)
    plan = Plan(
        tuple(cases[shard[0] - 1 :: shard[1]]),
        output,
        shard,
        len(cases),
        tuple(outputs),
        passed_over,
        inputs_found.warnings,
        include_labels,
    )
    if existing == "refuse":
        _check_absent(plan)
    return plan


def _key(path: str | PurePosixPath) -> str:
    """Return a key that is equal for paths that are one file on some file system.

    macOS and Windows ignore letter case, macOS also Unicode forms.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


def _check_shard(shard: tuple[int, int]) -> None:
    i, n = shard
    if not 1 <= i <= n:
        raise UsageError(f"shard={i}/{n}; expected 1/{max(n, 1)} to {max(n, 1)}/{max(n, 1)}.")


def _check_kinds(outputs: Sequence[str], existing: str) -> None:
    kinds = {kind.partition(":")[0] for kind in outputs}
    if not outputs or not kinds <= {*KINDS, *LABEL_KINDS} or existing not in _EXISTING:
        raise UsageError(
            f"outputs={outputs!r}, existing={existing!r}; expected some of {(*KINDS, *LABEL_KINDS)} and "
            f"one of {_EXISTING}."
        )


def _check_folder(output: Path) -> None:
    there = next((path for path in (output, *output.absolute().parents) if os.path.lexists(path)), output)
    if not os.path.isdir(there):
        raise UsageError(f"{printable(output)}: {printable(there)} is no folder; OUT is one. Give another OUT.")


def _check_clashes(cases: Sequence[Case], outputs: Sequence[str]) -> None:
    owners: dict[str, Case] = {}
    clashes: dict[tuple[int, int], str] = {}
    for case in cases:
        # the picture too: a BIDS case and another of the same name differ in their outputs only
        for path in (*map(case.path, outputs), case.picture):
            first = owners.setdefault(_key(path), case)
            if first is not case:
                line = f"{first.source} and {case.source}, as {printable(path)}"
                clashes.setdefault((first.index, case.index), line)
    if clashes:
        raise UsageError(
            f"inputs with the same output (letter case and Unicode form do not count): "
            f"{some([*clashes.values()], '; ')}. Leave one out, or name them in a CSV list with the columns image,name."
        )


def _check_inputs_stay(
    inputs: str | Path | Sequence[str | Path], cases: Sequence[Case], outputs: Sequence[str], output: Path
) -> None:
    """Refuse to write over an image, or over a list of cases that was given."""
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    read = {_key(os.path.realpath(path)) for path in [*given, *(image for case in cases for image in case.images)]}
    planned = [
        *(output / path for case in cases for path in case.paths(outputs)),
        *(output / name for name in RESERVED),
    ]
    over = [printable(path) for path in planned if _key(os.path.realpath(path)) in read]
    if over:
        raise UsageError(f"{some(over)}: both input and output. Inputs are never overwritten: give another OUT.")


def _check_places(cases: Sequence[Case], outputs: Sequence[str], output: Path) -> None:
    """Refuse a file or link where a folder for outputs belongs, and a folder where an output goes."""
    paths = [case.path(kind) for case in cases for kind in outputs]
    files = {*map(_key, paths), *map(_key, RESERVED)}
    folders = sorted({folder for path in [*paths, PurePosixPath("qc", "a")] for folder in path.parents})
    links = [printable(output / folder) for folder in folders if folder.name and os.path.islink(output / folder)]
    if links:
        raise UsageError(
            f"{some(links)}: a link where a folder for outputs is expected; links in OUT are not followed. Move it "
            "away."
        )
    wrong = [f for f in folders if _key(f) in files or (os.path.lexists(output / f) and not os.path.isdir(output / f))]
    if wrong:
        names = some([printable(output / folder) for folder in wrong])
        raise UsageError(
            f"{names}: a file is or will be there; expected a folder for outputs. Give another OUT or name."
        )
    blocked = [
        printable(output / path) for path in [*paths, *map(PurePosixPath, RESERVED)] if os.path.isdir(output / path)
    ]
    if blocked:
        raise UsageError(f"{some(blocked)}: a folder lies where an output is to be written. Give another OUT.")


def _check_absent(plan: Plan) -> None:
    planned = [plan.output / path for case in plan.cases for path in case.paths(plan.outputs)]
    there = [path for path in planned if os.path.lexists(path)]
    if there:
        raise UsageError(
            f"{len(there)} of {len(planned)} outputs are there already, e.g. {printable(there[0])}. "
            "Give existing='resume' to skip what is verified, existing='overwrite' to write them anew, or another OUT."
        )
    theirs = [name for name in RESERVED if os.path.lexists(plan.output / name)]
    if theirs and not has_record(plan.output):
        raise UsageError(
            f"{printable(plan.output)}: {some(theirs)} there, where the run writes its own, and no record of an "
            "earlier run. Give another OUT, or existing='overwrite'."
        )
