"""The stages of a case in a run (read, run, write, end), and the threads that take many cases through them."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_vit3d.data.errors import ImageError, Vit3dError
from monai_vit3d.data.files import file_sha256, remove_parts
from monai_vit3d.data.readers import read_volume
from monai_vit3d.data.volume import Grid, Volume
from monai_vit3d.memory_limits import out_of_memory

from .case import Case
from .jobs import Jobs
from .options import Options
from .plan import Plan
from .reading import case_sha256, mask_volume_ml, read_case
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
class Work:
    """A case on its way through the stages of a run."""

    case: Case
    record: dict[str, Any]
    prepared: Any = None
    output: Any = None

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


class CaseRunner(ABC):
    """The stages of a case: read, run, write, end. ``run`` and ``end`` belong to the main thread.

    Args:
        plan: which cases, and where their outputs go.
        record: of this run.
        options: how images are read.
        channels: images that each case needs.
        made_with: what the outputs follow from beside the images, in JSON's types.
        resume: whether to skip cases whose outputs are verified: input, outputs and ``made_with`` are those that an
            earlier run wrote down.
        strict: whether outputs of cases that an earlier run found suspicious are not taken for done.
    """

    def __init__(
        self,
        plan: Plan,
        record: RunRecord,
        options: Options,
        channels: int,
        made_with: dict[str, Any],
        resume: bool = False,
        strict: bool = False,
    ) -> None:
        self.plan, self.record, self.options, self.channels = plan, record, options, channels
        self.made_with, self.strict = made_with, strict
        self.earlier = load_records(plan.output) if resume else {}
        self.counts = {"done": 0, "skipped": 0, "failed": 0, "suspicious": 0}

    @abstractmethod
    def main_output(self, case: Case) -> Path | None:
        """Return the absolute path of a case's main output; None if it has none of its own."""

    @abstractmethod
    def check_grid(self, work: Work, path: Path, grid: Grid, channels: int) -> None:
        """Refuse a case by its grid, or note what is odd, before its voxels are read."""

    @abstractmethod
    def prepare(self, work: Work, volumes: Sequence[Volume]) -> Any:
        """Return the network's input."""

    @abstractmethod
    def infer(self, prepared: Any) -> Any:
        """Run the network over what :meth:`prepare` returned."""

    @abstractmethod
    def finish(self, work: Work) -> dict[str, Any]:
        """Write a case's outputs; returns what its record says of them, their SHA-256 by path as ``outputs``."""

    def blank(self, case: Case) -> dict[str, Any]:
        """Make the record of a case that nothing was done to yet."""
        images = [str(path) for path in case.images]
        output = self.main_output(case)
        return {
            "name": case.name,
            "input": images[0] if len(images) == 1 else images,
            "status": "pending",
            "output": None if output is None else str(output),
            "warnings": [],
            "suspicious": [],
            "error": None,
            "seconds": 0.0,
            "stages": {},
        }

    def read(self, case: Case) -> Work:
        """Hash, read and preprocess a case, unless its outputs are verified."""
        work = Work(case, self.blank(case))
        if outputs := self.earlier.get(case.name, {}).get("outputs"):
            work.record["outputs"] = outputs  # kept in the record of a case that fails before they are touched
        with work.stage("read"):
            if case.name in self.earlier and self._verified(case, case_sha256(case)):
                work.record = {**self.earlier[case.name], "status": "skipped", "output": work.record["output"]}
                return work
            check_grid = partial(self.check_grid, work)
            volumes = read_case(case, self.options, self.plan.include_labels, check_grid, self.channels)
            hashes = [digest for volume in volumes for digest in volume.sha256]
            if case.mask is not None:
                mask = read_volume(case.mask, max_voxels=self.options.max_voxels, exact=True, hashed=True)
                work.record["mask_ml"] = mask_volume_ml(mask)
                hashes += mask.sha256
            work.record |= {"input_sha256": hashes, "made_with": self.made_with}
            work.record["warnings"] += [warning for volume in volumes for warning in volume.warnings]
        if work.record["status"] == "pending":
            with work.stage("preprocess"):
                work.prepared = self.prepare(work, volumes)
        return work

    def run(self, work: Work) -> None:
        """Run the network over a case that was read."""
        if work.prepared is None:
            return
        if self.earlier.get(work.case.name, {}).get("outputs"):
            # they are about to change, so their record no longer holds
            self.record.files[work.case.name] = self.blank(work.case)
            self.record.write()
        with work.stage("network"):
            work.output, work.prepared = self.infer(work.prepared), None

    def write(self, work: Work) -> dict[str, Any]:
        """Write a case's outputs; its record says what became of it."""
        if work.output is not None:
            with work.stage("write"):
                work.record |= self.finish(work)
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

    def place(self, case: Case, kind: str) -> Path:
        """Return the absolute path of an output of a case."""
        return (self.plan.output / case.path(kind)).absolute()

    def hashes(self, paths: Sequence[Path]) -> dict[str, str]:
        """Return the SHA-256 of outputs by their path below OUT."""
        relative = [path.relative_to(self.plan.output.absolute()).as_posix() for path in paths]
        return {name: file_sha256(path) for name, path in zip(relative, paths)}

    def _verified(self, case: Case, hashes: list[str]) -> bool:
        """Return whether an earlier run made a case's outputs from this input with these weights and options.

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


def take_through(
    runner: CaseRunner,
    plan: Plan,
    record: RunRecord,
    jobs: int | None = None,
    on_case: Callable[[Mapping[str, Any]], None] = lambda record: None,
) -> Summary:
    """Run every case of a plan through the stages, and keep the run's record.

    While the network works on one case, threads read and preprocess the next ones and as many write the last ones.
    Each case goes through the network alone, so neither order nor ``jobs`` changes a byte of the outputs.

    Args:
        runner: the stages.
        plan: which cases, and where their outputs go.
        record: of this run.
        jobs: threads that read ahead, and threads that write behind; None adds them as the network waits for them.
        on_case: is given the record of each case as soon as it has ended.
    """
    earlier = load_records(plan.output)
    record.begin({case.name: runner.earlier.get(case.name, runner.blank(case)) for case in plan.cases}, earlier)
    remove_parts(plan.files())
    # one thread inside an operation: a second team of OpenMP's would let the network's own threads sleep in between
    # (a fifth of its time), and sums would be rounded by the number of cores
    threads: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    before = torch.get_num_threads()
    chosen = Jobs(jobs)
    with ThreadPoolExecutor(chosen.most, **threads) as readers, ThreadPoolExecutor(chosen.most, **threads) as writers:
        writing: deque[Future[dict[str, Any]]] = deque()
        try:
            for work in _ahead(readers, runner.read, plan.cases, chosen):
                runner.run(work)
                writing.append(writers.submit(runner.write, work))
                while writing and (len(writing) > chosen.count or writing[0].done()):
                    if not writing[0].done():
                        chosen.network_waited()
                    runner.end(writing.popleft().result(), on_case)
            while writing:
                runner.end(writing.popleft().result(), on_case)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            record.write()
            torch.set_num_threads(before)  # of threads that others start: PyTorch gives them the last number set
    return Summary(**runner.counts)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Case], Work], cases: tuple[Case, ...], jobs: Jobs
) -> Iterator[Work]:
    """Yield results in order, while ``jobs`` further ones are under way."""
    waiting: deque[Future[Work]] = deque()
    first = True
    for case in cases:
        waiting.append(pool.submit(function, case))
        if len(waiting) > jobs.count:
            if not (first or waiting[0].done()):  # nothing could be read ahead of the first
                jobs.network_waited()
            first = False
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _message(error: Exception, case: Case) -> str:
    cause: BaseException = error
    while not isinstance(cause, Vit3dError) and cause.__cause__ is not None:  # MONAI's Compose wraps what a step raises
        cause = cause.__cause__
    text = str(cause) if isinstance(cause, Vit3dError) else f"{type(cause).__name__}: {cause}"
    if out_of_memory(cause):
        text = "out of memory. Use fewer jobs=, a machine with more memory, or a crop of the image."
    named = any(str(path) in text for path in case.images)
    return text if named else f"{case.images[0]}: {text}"
