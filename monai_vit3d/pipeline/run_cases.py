"""Run many cases through a bundle: a case may fail, the run goes on, and outputs are written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.nifti import write_labels, write_map
from monai_vit3d.data.volume import Grid, Volume
from monai_vit3d.visualize.overlay import write_png
from monai_vit3d.visualize.sheet import draw_sheet

from .case import Case
from .case_runner import CaseRunner, Summary, Work, take_through
from .chosen_labels import choose_labels
from .dicom_seg import add_dicom_seg
from .inference import NetworkOutput
from .label_files import label_kinds, write_label_files
from .plan import Plan
from .plausibility import Implausibility
from .predictor import Prediction, Predictor
from .prepare import Prepared
from .record import RunRecord


def run_cases(
    plan: Plan,
    predictor: Predictor,
    record: RunRecord,
    jobs: int | None = None,
    resume: bool = False,
    strict: bool = False,
    on_case: Callable[[Mapping[str, Any]], None] = lambda record: None,
) -> Summary:
    """Predict every case of a plan, write its outputs, and keep the run's record.

    Args:
        plan: which cases, and where their outputs go.
        predictor: what to run on each.
        record: of this run.
        jobs: threads that read ahead, and threads that write behind; None adds them as the network waits for them.
        resume: whether to skip cases whose outputs are verified: input, weights, options and outputs have the SHA-256
            that an earlier run wrote down.
        strict: whether a case fails, with nothing of it written, that is unlike the bundle's training or whose labels
            cannot be true; a warning otherwise.
        on_case: is given the record of each case as soon as it has ended.
    """
    return take_through(_PredictionRunner(plan, predictor, record, resume, strict), plan, record, jobs, on_case)


class _PredictionRunner(CaseRunner):
    """The stages of a case that a bundle predicts."""

    def __init__(self, plan: Plan, predictor: Predictor, record: RunRecord, resume: bool, strict: bool) -> None:
        self.predictor, self.bundle = predictor, predictor.bundle
        options = predictor.options
        self.labels = choose_labels(self.bundle, options.only) if options.split or options.mesh else ()
        made_with = {
            "weights_sha256": self.bundle.weights.sha256,
            "config_sha256": self.bundle.config_sha256,
            # as JSON gives it back, lists for tuples, to compare it with an earlier record
            "options": json.loads(json.dumps(asdict(predictor.options))),
            "device": self.bundle.device.type,
            "backend": self.bundle.backend,
            "bf16": self.bundle.bf16,
        }
        super().__init__(
            plan, record, predictor.options, self.bundle.images_per_case, made_with, resume=resume, strict=strict
        )

    def main_output(self, case: Case) -> Path | None:
        """Return the path of its labels; None of a classifier."""
        return None if self.bundle.metadata.classifies else self.place(case, "seg")

    def check_grid(self, work: Work, path: Path, grid: Grid, channels: int) -> None:
        """Compare a grid with the bundle's training and the free memory."""
        self._add_findings(work, self.predictor.check(path, grid, channels), path)

    def prepare(self, work: Work, volumes: Sequence[Volume]) -> Prepared:
        """Run the bundle's preprocessing, and compare what it gives with the training."""
        prepared = self.predictor.prepare(volumes)
        self._add_findings(work, self.predictor.check_input(prepared), work.case.images[0])
        return prepared

    def infer(self, prepared: Prepared) -> NetworkOutput:
        """Run the network."""
        return self.predictor.infer(prepared)

    def finish(self, work: Work) -> dict[str, Any]:
        """Take labels and maps to the file's grid, and write them."""
        prediction = self.predictor.finish(work.output)
        work.record["warnings"] += prediction.warnings
        self._add_findings(work, prediction.findings, work.case.images[0])
        work.record.pop("outputs", None)
        return self._write(work.case, work.record, prediction)

    def _add_findings(self, work: Work, findings: list[Implausibility], path: Path) -> None:
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

    def _write(self, case: Case, record: dict[str, Any], prediction: Prediction) -> dict[str, Any]:
        """Write the outputs of a case; returns what its record says of them, warnings are added to the record."""
        written: dict[str, Any] = {}
        paths = []
        volume = prediction.volume
        for kind, values in prediction.maps.items():
            paths.append(self.place(case, kind))
            write_map(values, volume.grid, paths[-1])
        labels = np.zeros(volume.grid.shape, np.uint8)
        if prediction.labels is not None:
            labels = prediction.labels
            written["stats"] = [summary.row() for summary in prediction.stats]
            paths.append(self.place(case, "seg"))
            write_labels(labels, volume.grid, paths[-1])
            kinds = label_kinds(self.predictor.options.split, self.predictor.options.mesh)
            paths += write_label_files(labels, volume.grid, self.labels, kinds, partial(self.place, case))
            if case.series is not None and case.seg:
                path = (self.plan.output / case.dicom_seg).absolute()
                names = {summary.label: summary.name for summary in prediction.stats}
                warnings = add_dicom_seg(labels, case.series, names, path, self.predictor.options.volume)
                record["warnings"] += warnings
                paths += [] if warnings else [path]
        if prediction.scores is not None:
            written |= self._scores(prediction.scores)
        paths.append((self.plan.output / case.picture).absolute())
        write_png(draw_sheet(volume.voxels, labels, volume.grid), paths[-1])
        return {**written, "picture": case.picture.as_posix(), "outputs": self.hashes(paths)}

    def _scores(self, scores: list[float]) -> dict[str, Any]:
        from monai_vit3d.metrics import PredictionTable

        table = PredictionTable(self.bundle.class_names, self.bundle.task)
        cells = table.cells(torch.tensor(scores))
        return {"prediction": dict(zip(self.bundle.class_names, scores)), "cells": dict(zip(table.header(), cells))}
