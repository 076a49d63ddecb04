"""Read the label maps of cases, and score them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monai_vit3d.data.errors import ImageError, UsageError, Vit3dError
from monai_vit3d.data.labels import MAX_LABEL_ROUNDING
from monai_vit3d.data.printable import excerpt
from monai_vit3d.data.readers import count_volumes, read_volume
from monai_vit3d.data.same_grid import SAME_PLACE_VOXELS, corner_shift
from monai_vit3d.data.volume import Array, Grid
from monai_vit3d.metrics.segmentation import LabelScores, absent_label, score_labels

from .pairs import EvaluationCase


@dataclass(frozen=True)
class ScoredCase:
    """A case with its scores, or with the reason why it has none.

    Args:
        case: its files.
        scores: a row a class; all cases of an evaluation have the same classes.
        error: one line; empty if it was scored.
    """

    case: EvaluationCase
    scores: tuple[LabelScores, ...] = ()
    error: str = ""

    def mean(self, metric: str) -> float:
        """Average a score over the classes that the case has; NaN if it has none."""
        values = [value for row in self.scores if not math.isnan(value := getattr(row, metric))]
        return sum(values) / len(values) if values else math.nan

    @property
    def suspicion(self) -> tuple[float, float]:
        """Sort key of the page: lowest Dice of a class first, then the largest distance."""
        dice = [row.dice for row in self.scores if not math.isnan(row.dice)]
        distances = [row.hd95_mm for row in self.scores if not math.isnan(row.hd95_mm)]
        return min(dice, default=math.inf), -max(distances, default=0.0)


def score_cases(
    cases: Sequence[EvaluationCase],
    names: Mapping[int, str],
    nsd_mm: float,
    on_case: Callable[[ScoredCase], None] = lambda case: None,
) -> list[ScoredCase]:
    """Score cases one after the other; one that cannot be scored leaves the others alone.

    Args:
        cases: their files.
        names: label value to name; values that only files have are called by their number.
        nsd_mm: tolerance of the surface Dice in mm.
        on_case: is given each case when it is scored.

    Raises:
        UsageError: a tolerance that is not positive.
    """
    if not (math.isfinite(nsd_mm) and nsd_mm > 0):
        raise UsageError(f"nsd_mm={nsd_mm}; expected a length in mm above 0.")
    scored = []
    for case in cases:
        try:
            result = ScoredCase(case, tuple(_score(case, names, nsd_mm)))
        except (Vit3dError, OSError) as error:
            result = ScoredCase(case, error=excerpt(error))
        scored.append(result)
        on_case(result)
    return _with_all_classes(scored)


def read_pair(case: EvaluationCase) -> tuple[Array, Array, Grid]:
    """Read a prediction and its label.

    Returns:
        Both as (H, W, D) int32, and their grid.

    Raises:
        ImageError: one of them cannot be read, is no label map, or they lie on different grids.
    """
    prediction, grid = read_label_map(case.prediction)
    label, label_grid = read_label_map(case.label)
    advice = "Predict on the grid of the labels, or resample the labels onto it by nearest neighbour."
    if grid.shape != label_grid.shape:
        raise ImageError(
            f"{case.label}: labels of shape {label_grid.shape}, {case.prediction} has {grid.shape}; expected one "
            f"grid. {advice}"
        )
    shift = corner_shift(grid.affine_mm, label_grid.affine_mm, grid.shape)
    if not shift <= SAME_PLACE_VOXELS:
        raise ImageError(
            f"{case.label}: labels up to {shift:.3g} voxels away from {case.prediction}; expected one grid. {advice}"
        )
    return prediction, label, grid


def read_label_map(path: Path) -> tuple[Array, Grid]:
    """Read whole numbers (H, W, D), int32, and their grid.

    Raises:
        ImageError: the file cannot be read, or holds fractions or negative numbers.
    """
    volumes = count_volumes(path)
    if volumes > 1:
        raise ImageError(f"{path}: {volumes} volumes; a label map is one 3D volume. Save the labels as one map.")
    volume = read_volume(path, exact=True)
    whole = np.rint(volume.voxels)
    wrong = (np.abs(volume.voxels - whole) > MAX_LABEL_ROUNDING) | (whole < 0)
    if wrong.any():
        value = float(volume.voxels[wrong][0])
        raise ImageError(
            f"{path}: {np.count_nonzero(wrong)} voxels such as {value:g}; a label map holds whole numbers from 0 on. "
            "Give the file with labels, not with probabilities or intensities."
        )
    return whole.astype(np.int32), volume.grid


def _score(case: EvaluationCase, names: Mapping[int, str], nsd_mm: float) -> list[LabelScores]:
    prediction, label, grid = read_pair(case)
    return score_labels(prediction, label, grid.spacing_mm, names, nsd_mm, grid.voxel_ml)


def _with_all_classes(scored: Iterable[ScoredCase]) -> list[ScoredCase]:
    """Give all cases a row for each class that any of them has."""
    scored = list(scored)
    names = {row.label: row.name for one in scored for row in one.scores}
    complete = []
    for one in scored:
        own = {row.label: row for row in one.scores}
        rows = tuple(own.get(label) or absent_label(label, names[label]) for label in sorted(names))
        complete.append(one if one.error else replace(one, scores=rows))
    return complete
