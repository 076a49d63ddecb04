"""Run many cases through a bundle: a case may fail, the run goes on, and outputs are written whole or not at all."""

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

from monai_vit3d.data.errors import ImageError, Vit3dError
from monai_vit3d.data.files import file_sha256, remove_parts
from monai_vit3d.data.nifti import write_labels, write_map
from monai_vit3d.data.volume import Grid
from monai_vit3d.visualize.overlay import draw_overlay, write_png

from .case import Case
from .dicom_seg import add_dicom_seg
from .inference import NetworkOutput
from .memory_limits import out_of_memory
from .plan import Plan
from .plausibility import Implausibility
from .predictor import Prediction, Predictor
from .prepare import Prepared
from .reading import case_sha256, read_case
from .record import RunRecord, load_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """The numbers of cases that a run did, skipped and failed.

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


@dataclass(eq=False)
class _Work:
    """A case on its way through the stages of a run."""

    case: Case
    record: dict[str, Any]
    prepared: Prepared | None = None
    output: NetworkOutput | None = None

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
    predictor: Predictor,
    record: RunRecord,
    jobs: int = 1,
    resume: bool = False,
    strict: bool = False,
    on_case: Callable[[Mapping[str, Any]], None] = lambda record: None,
) -> Summary:
    """Predict every case of a plan, write its outputs, and keep the run's record.

    While the network works on one case, ``jobs`` threads read and preprocess the next ones and as many write the
    last ones. Each case goes through the network alone, so neither order nor ``jobs`` changes a byte of the outputs.

    Args:
        plan: which cases, and where their outputs go.
        predictor: what to run on each.
        record: of this run.
        jobs: threads that read ahead, and threads that write behind.
        resume: whether to skip cases whose outputs are verified: input, weights, options and outputs have the SHA-256
            that an earlier run wrote down.
        strict: whether a case fails, with nothing of it written, that is unlike the bundle's training or whose labels
            cannot be true; a warning otherwise.
        on_case: is given the record of each case as soon as it has ended.
    """
    earlier = load_records(plan.output)
    runner = _CaseRunner(plan, predictor, record, earlier if resume else {}, strict)
    record.begin({case.name: runner.earlier.get(case.name, runner.blank(case)) for case in plan.cases}, earlier)
    remove_parts(plan.files())
    # one thread inside an operation: a second team of OpenMP's would let the network's own threads sleep in between
    # (a fifth of its time), and sums would be rounded by the number of cores
    threads: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    before = torch.get_num_threads()
    with ThreadPoolExecutor(jobs, **threads) as readers, ThreadPoolExecutor(jobs, **threads) as writers:
        writing: deque[Future[dict[str, Any]]] = deque()
        try:
            for work in _ahead(readers, runner.read, plan.cases, jobs):
                runner.run(work)
                writing.append(writers.submit(runner.write, work))
                while writing and (len(writing) > jobs or writing[0].done()):
                    runner.end(writing.popleft().result(), on_case)
            while writing:
                runner.end(writing.popleft().result(), on_case)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            record.write()
            torch.set_num_threads(before)  # of threads that others start: PyTorch gives them the last number set
    return Summary(**runner.counts)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Case], _Work], cases: tuple[Case, ...], count: int
) -> Iterator[_Work]:
    """Yield results in order, while ``count`` further ones are under way."""
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
        predictor: Predictor,
        record: RunRecord,
        earlier: dict[str, dict[str, Any]],
        strict: bool,
    ) -> None:
        self.plan, self.predictor, self.record, self.earlier, self.strict = plan, predictor, record, earlier, strict
        self.bundle = bundle = predictor.bundle
        self.counts = {"done": 0, "skipped": 0, "failed": 0, "suspicious": 0}
        self.made_with = {
            "weights_sha256": bundle.weights.sha256,
            "config_sha256": bundle.config_sha256,
            # as JSON gives it back, lists for tuples, to compare it with an earlier record
            "options": json.loads(json.dumps(asdict(predictor.options))),
            "device": bundle.device.type,
            "backend": bundle.backend,
            "bf16": bundle.bf16,
        }

    def blank(self, case: Case) -> dict[str, Any]:
        """Make the record of a case that nothing was done to yet."""
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
        if outputs := self.earlier.get(case.name, {}).get("outputs"):
            work.record["outputs"] = outputs  # kept in the record of a case that fails before they are touched
        with work.stage("read"):
            if case.name in self.earlier and self._verified(case, case_sha256(case)):
                work.record = {**self.earlier[case.name], "status": "skipped", "output": work.record["output"]}
                return work
            check_grid = partial(self._check_grid, work)
            channels = self.bundle.images_per_case
            volumes = read_case(case, self.predictor.options, self.plan.include_labels, check_grid, channels)
            hashes = [digest for volume in volumes for digest in volume.sha256]
            work.record |= {"input_sha256": hashes, "made_with": self.made_with}
            work.record["warnings"] += [warning for volume in volumes for warning in volume.warnings]
        if work.record["status"] == "pending":
            with work.stage("preprocess"):
                prepared = self.predictor.prepare(volumes)
                self._add_findings(work, self.predictor.check_input(prepared), case.images[0])
                work.prepared = prepared
        return work

    def run(self, work: _Work) -> None:
        """Run the network over a case that was read."""
        if work.prepared is None:
            return
        if self.earlier.get(work.case.name, {}).get("outputs"):
            # they are about to change, so their record no longer holds
            self.record.files[work.case.name] = self.blank(work.case)
            self.record.write()
        with work.stage("network"):
            work.output, work.prepared = self.predictor.infer(work.prepared), None

    def write(self, work: _Work) -> dict[str, Any]:
        """Write a case's outputs; its record says what became of it."""
        if work.output is not None:
            with work.stage("write"):
                prediction = self.predictor.finish(work.output)
                work.record["warnings"] += prediction.warnings
                self._add_findings(work, prediction.findings, work.case.images[0])
                work.record.pop("outputs", None)
                work.record |= self._write(work.case, work.record, prediction)
                work.record["status"] = "done"
            work.output = None
        output = work.record["output"]
        if work.record["status"] == "failed" and output and Path(output).is_file():
            work.record["warnings"].append("an output of an earlier run is still there; this run made none")
        return work.record

    def end(self, record: dict[str, Any], on_case: Callable[[Mapping[str, Any]], None]) -> None:
        """Add the record of a case that has ended."""
        self.counts[record["status"]] += 1
        self.counts["suspicious"] += record["status"] == "done" and bool(record["suspicious"])
        self.record.add(record)
        on_case(record)

    def _check_grid(self, work: _Work, path: Path, grid: Grid, channels: int) -> None:
        self._add_findings(work, self.predictor.check(path, grid, channels), path)

    def _add_findings(self, work: _Work, findings: list[Implausibility], path: Path) -> None:
        """Put findings into a case's record.

        Raises:
            ImageError: there are some, and they are to be failures.
        """
        work.record["suspicious"] += [{"kind": finding.kind, "text": finding.text} for finding in findings]
        if findings and self.strict:
            texts = "; ".join(finding.text for finding in findings)
            raise ImageError(
                f"{path}: {texts}. Not written, because of strict=True: look at the image, or leave it out."
            )
        work.record["warnings"] += [finding.text for finding in findings]

    def _place(self, case: Case, kind: str) -> Path:
        return (self.plan.output / case.path(kind)).absolute()

    def _verified(self, case: Case, hashes: list[str]) -> bool:
        """Tell whether an earlier run made a case's outputs from this input with these weights and options.

        Raises:
            ImageError: an output was changed since: somebody's work, not to be overwritten.
        """
        earlier = self.earlier.get(case.name, {})
        outputs = {self.plan.output / path: digest for path, digest in earlier.get("outputs", {}).items()}
        for path, digest in outputs.items():
            if path.is_file() and file_sha256(path) != digest:
                raise ImageError(
                    f"{case.images[0]}: its output {path} was changed since it was written, and is not overwritten. "
                    "Keep it under another name, or give existing='overwrite' instead of existing='resume'."
                )
        same = earlier.get("made_with") == self.made_with and earlier.get("input_sha256") == hashes
        finished = earlier.get("status") in ("done", "skipped")
        accepted = not (self.strict and earlier.get("suspicious"))
        return bool(same and finished and accepted and all(path.is_file() for path in outputs))

    def _write(self, case: Case, record: dict[str, Any], prediction: Prediction) -> dict[str, Any]:
        """Write the outputs of a case; returns what its record says of them, warnings are added to the record."""
        written: dict[str, Any] = {}
        paths = []
        volume = prediction.volume
        for kind, values in prediction.maps.items():
            paths.append(self._place(case, kind))
            write_map(values, volume.grid, paths[-1])
        labels = np.zeros(volume.grid.shape, np.uint8)
        if prediction.labels is not None:
            labels = prediction.labels
            written["stats"] = [summary.row() for summary in prediction.stats]
            paths.append(self._place(case, "seg"))
            write_labels(labels, volume.grid, paths[-1])
            if case.series is not None and case.seg:
                path = (self.plan.output / case.dicom_seg).absolute()
                names = {summary.label: summary.name for summary in prediction.stats}
                warnings = add_dicom_seg(labels, case.series, names, path, self.predictor.options.volume)
                record["warnings"] += warnings
                paths += [] if warnings else [path]
        if prediction.scores is not None:
            written |= self._scores(prediction.scores)
        paths.append((self.plan.output / case.picture).absolute())
        write_png(draw_overlay(volume.voxels, labels, volume.grid), paths[-1])
        relative = [path.relative_to(self.plan.output.absolute()).as_posix() for path in paths]
        hashes = {name: file_sha256(path) for name, path in zip(relative, paths)}
        return {**written, "picture": relative[-1], "outputs": hashes}

    def _scores(self, scores: list[float]) -> dict[str, Any]:
        from monai_vit3d.metrics import PredictionTable

        table = PredictionTable(self.bundle.class_names, self.bundle.task)
        cells = table.cells(torch.tensor(scores))
        return {"prediction": dict(zip(self.bundle.class_names, scores)), "cells": dict(zip(table.header(), cells))}


def _message(error: Exception, case: Case) -> str:
    cause: BaseException = error
    while not isinstance(cause, Vit3dError) and cause.__cause__ is not None:  # MONAI's Compose wraps what a step raises
        cause = cause.__cause__
    text = str(cause) if isinstance(cause, Vit3dError) else f"{type(cause).__name__}: {cause}"
    if out_of_memory(cause):
        text = "out of memory. Use fewer jobs=, a machine with more memory, or a crop of the image."
    named = any(str(path) in text for path in case.images)
    return text if named else f"{case.images[0]}: {text}"
