"""Many volumes through a bundle: a file may fail, the run goes on, and what is done is done whole."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.errors import ImageError, Vit3dError
from ..data.files import file_sha256, remove_parts
from ..data.nifti import write_labels, write_map
from ..data.volume import Grid, Volume
from .bundle import Bundle
from .case import Case
from .dicom_seg import add_dicom_seg
from .memory import out_of_memory
from .overlay import draw_overlay, write_png
from .plan import Plan
from .plausibility import Implausibility, check_geometry, check_input, check_labels, refuse
from .predict import Answer, Options, Output, finish, infer
from .prepare import Prepared, prepare
from .reading import case_sha256, read_case
from .record import RunRecord, load_records
from .stats import LabelSummary, label_stats

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Args:
        done: cases with new outputs.
        skipped: cases whose outputs an earlier run made from the same input, weights and options.
        failed: cases with an error; run.json names it.
        suspicious: of those done, how many are unlike the bundle's training or have labels that cannot be true.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    suspicious: int = 0


@dataclass(frozen=True)
class Doubts:
    """What becomes of cases that are unlike a bundle's training, or whose labels cannot be true.

    Args:
        anyway: whether those far from the training are run, too; they fail otherwise.
        strict: whether a case fails that would be warned of; nothing of it is written then.
    """

    anyway: bool = False
    strict: bool = False


@dataclass(eq=False)
class _Work:
    """A case on its way through the stages."""

    case: Case
    record: dict[str, Any]
    prepared: Prepared | None = None
    output: Output | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage; an error in it fails the case, not the run."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.prepared = self.output = None
            self.record |= {"status": "failed", "error": _message(error, self.case)}
            logger.debug("%s failed", self.case.name, exc_info=True)
        self.record["stages"][name] = round(time.perf_counter() - start, 4)
        self.record["seconds"] = round(sum(self.record["stages"].values()), 4)


def run_cases(
    plan: Plan,
    bundle: Bundle,
    record: RunRecord,
    options: Options,
    jobs: int = 1,
    resume: bool = False,
    tell: Callable[[Mapping[str, Any]], None] = lambda record: None,
    doubts: Doubts = Doubts(),
) -> Summary:
    """Predict every case of a plan, write its outputs, and keep the run's record.

    While the network works on one case, ``jobs`` threads read and preprocess the next ones and as many write the
    last ones. Each case goes through the network alone, so neither order nor ``jobs`` changes a byte of the outputs.

    Args:
        plan: which cases, and where their outputs go.
        bundle: what to run.
        record: of this run.
        options: what to compute.
        jobs: threads that read ahead, and threads that write behind.
        resume: whether to skip cases whose outputs are verified: input, weights, options and outputs have the SHA-256
            that an earlier run wrote down.
        tell: is given the record of each case as soon as it has ended.
        doubts: what becomes of cases that do not fit the bundle.
    """
    earlier = load_records(plan.output)
    cohort = _CaseRunner(plan, bundle, record, options, earlier if resume else {}, doubts)
    record.begin({case.name: cohort.believed.get(case.name, cohort.blank(case)) for case in plan.cases}, earlier)
    remove_parts(plan.files())
    # one thread inside an operation: a second team of OpenMP's would let the network's own threads sleep in between
    # (a fifth of its time), and sums would be rounded by the number of cores
    threads: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    before = torch.get_num_threads()
    with ThreadPoolExecutor(jobs, **threads) as readers, ThreadPoolExecutor(jobs, **threads) as writers:
        writing: deque[Future[dict[str, Any]]] = deque()
        try:
            for work in _ahead(readers, cohort.read, plan.cases, jobs):
                cohort.run(work)
                writing.append(writers.submit(cohort.write, work))
                while writing and (len(writing) > jobs or writing[0].done()):
                    cohort.end(writing.popleft().result(), tell)
            while writing:
                cohort.end(writing.popleft().result(), tell)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            record.write()
            torch.set_num_threads(before)  # of threads that others start: PyTorch gives them the last number set
    return Summary(**cohort.counts)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Case], _Work], cases: tuple[Case, ...], count: int
) -> Iterator[_Work]:
    """Results in order, while ``count`` further ones are under way."""
    waiting: deque[Future[_Work]] = deque()
    for case in cases:
        waiting.append(pool.submit(function, case))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _CaseRunner:
    """The stages of a case: read, run, write, end. ``run`` and ``end`` belong to the main thread."""

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        record: RunRecord,
        options: Options,
        believed: dict[str, dict[str, Any]],
        doubts: Doubts,
    ) -> None:
        self.plan, self.bundle, self.record, self.options, self.believed = plan, bundle, record, options, believed
        self.doubts = doubts
        self.counts = {"done": 0, "skipped": 0, "failed": 0, "suspicious": 0}
        self.made_with = {
            "weights_sha256": bundle.weights_sha256,
            "config_sha256": bundle.config_sha256,
            "options": json.loads(json.dumps(asdict(options))),  # as it will be read back: a tuple comes as a list
            "device": bundle.device.type,
            "backend": bundle.backend,
            "bf16": bundle.bf16,
        }

    def blank(self, case: Case) -> dict[str, Any]:
        """The record of a case that nothing was done to yet."""
        images = [str(path) for path in case.images]
        output = None if self.bundle.metadata.classifies else str(self._place(case, "seg"))
        return {
            "name": case.name,
            "input": images[0] if len(images) == 1 else images,
            "status": "pending",
            "output": output,
            "warnings": [],
            "suspicious": [],
            "error": None,
            "seconds": 0.0,
            "stages": {},
        }

    def read(self, case: Case) -> _Work:
        """Hash, read and preprocess a case, unless its outputs are verified."""
        work = _Work(case, self.blank(case))
        if outputs := self.believed.get(case.name, {}).get("outputs"):
            work.record["outputs"] = outputs  # of a case that fails before they are touched, they stay known
        with work.stage("read"):
            if case.name in self.believed and self._verified(case, case_sha256(case)):
                work.record = {**self.believed[case.name], "status": "skipped", "output": work.record["output"]}
                return work
            on_grid = partial(self._compare_grid, work)
            volumes = read_case(case, self.bundle, self.options, self.plan.include_labels, on_grid)
            hashes = [digest for volume in volumes for digest in volume.sha256]
            work.record |= {"input_sha256": hashes, "made_with": self.made_with}
            work.record["warnings"] += [warning for volume in volumes for warning in volume.warnings]
        if work.record["status"] == "pending":
            with work.stage("preprocess"):
                prepared = prepare(volumes, self.bundle)
                self._doubt(work, check_input(prepared.image, self.bundle.metadata), case.images[0])
                work.prepared = prepared
        return work

    def run(self, work: _Work) -> None:
        """Run the network over a case that was read."""
        if work.prepared is None:
            return
        if self.believed.get(work.case.name, {}).get("outputs"):
            # they are about to change: what was known of them holds no more
            self.record.files[work.case.name] = self.blank(work.case)
            self.record.write()
        with work.stage("network"):
            work.output = infer(work.prepared, self.bundle, self.options)

    def write(self, work: _Work) -> dict[str, Any]:
        """Write a case's outputs; its record says what became of it."""
        if work.prepared is not None and work.output is not None:
            with work.stage("write"):
                answer = finish(work.prepared, work.output, self.bundle)
                work.record["warnings"] += answer.warnings
                stats = self._judged(work, work.prepared.volume, answer, work.output.entropy)
                work.record.pop("outputs", None)
                work.record |= self._write(work.case, work.record, work.prepared.volume, answer, stats)
                work.record["status"] = "done"
            work.prepared = work.output = None
        output = work.record["output"]
        if work.record["status"] == "failed" and output and Path(output).is_file():
            work.record["warnings"].append("an output of an earlier run is still there; this run made none")
        return work.record

    def end(self, record: dict[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> None:
        """Keep the record of a case that went through."""
        self.counts[record["status"]] += 1
        self.counts["suspicious"] += record["status"] == "done" and bool(record["suspicious"])
        self.record.add(record)
        tell(record)

    def _compare_grid(self, work: _Work, path: Path, grid: Grid) -> None:
        findings = check_geometry(grid, self.bundle.metadata)
        if not self.doubts.anyway:
            refuse(path, findings, self.bundle.metadata)
        self._doubt(work, findings, path)

    def _judged(self, work: _Work, volume: Volume, answer: Answer, entropy: float | None) -> list[LabelSummary]:
        """Statistics of a case's labels, after a look at whether they can be true."""
        if answer.labels is None:
            return []
        stats = label_stats(answer.labels, volume.voxels, volume.grid, answer.names)
        findings = check_labels(answer.labels, volume, stats, entropy, self.bundle.metadata)
        self._doubt(work, findings, work.case.images[0])
        return stats

    def _doubt(self, work: _Work, findings: list[Implausibility], path: Path) -> None:
        """Put findings into a case's record.

        Raises:
            ImageError: there are some, and they are to be failures.
        """
        work.record["suspicious"] += [{"kind": finding.kind, "text": finding.text} for finding in findings]
        if findings and self.doubts.strict:
            texts = "; ".join(finding.text for finding in findings)
            raise ImageError(f"{path}: {texts}. Not written, because of --strict: look at the image, or leave it out.")
        work.record["warnings"] += [finding.text for finding in findings]

    def _place(self, case: Case, kind: str) -> Path:
        return (self.plan.output / case.path(kind)).absolute()

    def _verified(self, case: Case, hashes: list[str]) -> bool:
        """Whether an earlier run made a case's outputs from this input with these weights and options.

        Raises:
            ImageError: an output is another than the one that was written: somebody's work, not to be overwritten.
        """
        earlier = self.believed.get(case.name, {})
        outputs = {self.plan.output / path: digest for path, digest in earlier.get("outputs", {}).items()}
        for path, digest in outputs.items():
            if path.is_file() and file_sha256(path) != digest:
                raise ImageError(
                    f"{case.images[0]}: its output {path} was changed since it was written, and is not overwritten. "
                    "Keep it under another name, or give --overwrite instead of --resume."
                )
        same = earlier.get("made_with") == self.made_with and earlier.get("input_sha256") == hashes
        finished = earlier.get("status") in ("done", "skipped")
        accepted = not (self.doubts.strict and earlier.get("suspicious"))
        return bool(same and finished and accepted and all(path.is_file() for path in outputs))

    def _write(
        self, case: Case, record: dict[str, Any], volume: Volume, answer: Answer, stats: list[LabelSummary]
    ) -> dict[str, Any]:
        """Write what there is to write; returns what the record says of it, warnings are added to the record."""
        found: dict[str, Any] = {}
        paths = []
        for kind, values in answer.maps.items():
            paths.append(self._place(case, kind))
            write_map(values, volume.grid, paths[-1])
        labels = np.zeros(volume.grid.shape, np.uint8)
        if answer.labels is not None:
            labels = answer.labels
            found["stats"] = [one.row() for one in stats]
            paths.append(self._place(case, "seg"))
            write_labels(labels, volume.grid, paths[-1])
            if case.series is not None and case.seg:
                path = (self.plan.output / case.dicom_seg).absolute()
                named = {row["label"]: row["name"] for row in found["stats"]}
                warnings = add_dicom_seg(labels, case.series, named, path, self.options.volume)
                record["warnings"] += warnings
                paths += [] if warnings else [path]
        if answer.numbers is not None:
            found |= self._prediction(answer.numbers)
        paths.append((self.plan.output / case.picture).absolute())
        write_png(draw_overlay(volume.voxels, labels, volume.grid), paths[-1])
        relative = [path.relative_to(self.plan.output.absolute()).as_posix() for path in paths]
        hashes = {name: file_sha256(path) for name, path in zip(relative, paths)}
        return {**found, "picture": relative[-1], "outputs": hashes}

    def _prediction(self, numbers: list[float]) -> dict[str, Any]:
        from ..metrics import PredictionTable

        table = PredictionTable(self.bundle.class_names, self.bundle.task)
        cells = table.cells(torch.tensor(numbers))
        return {"prediction": dict(zip(self.bundle.class_names, numbers)), "cells": dict(zip(table.header(), cells))}


def _message(error: Exception, case: Case) -> str:
    cause: BaseException = error
    while not isinstance(cause, Vit3dError) and cause.__cause__ is not None:  # MONAI's Compose wraps what a step raises
        cause = cause.__cause__
    text = str(cause) if isinstance(cause, Vit3dError) else f"{type(cause).__name__}: {cause}"
    if out_of_memory(cause):
        text = "out of memory. Use fewer --jobs, a machine with more memory, or a crop of the image."
    named = any(str(path) in text for path in case.images)
    return text if named else f"{case.images[0]}: {text}"
