"""Read every file of a labelled data set once, to check and to measure it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from .dataset import LabelledCase, LabelledDataset
from .fingerprint import CaseMeasures, measure_case, summarize_cases
from .verify import CheckedCase, Problem, check_case, check_together, subjects_of_copies

MAX_THREADS = 4  # each holds one case


class Examination(NamedTuple):
    """Problems and measures of a data set's files.

    Args:
        problems: errors first; with one, ``fingerprint`` describes the cases without.
        fingerprint: numbers of the training cases; empty if none can be used.
        same_subjects: subjects who have the images of another one, and that one.
    """

    problems: list[Problem]
    fingerprint: dict[str, Any]
    same_subjects: dict[str, str]


def examine(
    dataset: LabelledDataset, on_case: Callable[[str], None] | None = None, threads: int | None = None
) -> Examination:
    """Check a data set's files as a training will read them, and measure it, in one reading of each file.

    Args:
        dataset: from :func:`~monai_vit3d.planning.read_dataset`.
        on_case: called with the name of each case that was read, in order.
        threads: that read cases at a time, each of which is held in memory; None takes one a core, 4 at most.

    Returns:
        The problems and the fingerprint.
    """
    checked, measures = [], []
    with ThreadPoolExecutor(threads or min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for case, facts in pool.map(lambda case: _examine_case(dataset, case), dataset.cases):
            checked.append(case)
            measures += [facts] if facts else []
            if on_case is not None:
                on_case(case.case.name)
    problems = [*check_together(dataset, checked), *(problem for case in checked for problem in case.problems)]
    problems.sort(key=lambda problem: (problem.severity, str(problem.file)))
    fingerprint = summarize_cases(dataset, measures) if measures else {}
    return Examination(problems, fingerprint, subjects_of_copies(checked))


def _examine_case(dataset: LabelledDataset, case: LabelledCase) -> tuple[CheckedCase, CaseMeasures | None]:
    """Read, check and measure a case, and let go of its voxels."""
    checked = check_case(dataset, case)
    is_complete = bool(checked.channels) and (dataset.task != "segmentation" or checked.labels is not None)
    facts = measure_case(checked) if is_complete and case.section == "training" else None
    return replace(checked, channels=[], labels=None), facts
