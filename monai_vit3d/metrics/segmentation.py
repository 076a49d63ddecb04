"""Score a label map against a reference: overlap, borders, volume and detection, a row for each class.

A score of a class that neither map has is undefined: NaN, to be left out of means. A class that only one of them has
gets the worst value of each score, so that a missed or made-up structure is not left out: 0, and for the Hausdorff
distance the diagonal of the volume, the largest distance that could occur. This follows Metrics Reloaded (Maier-Hein et
al. 2024, doi:10.1038/s41592-023-02151-z), by which failed predictions enter a mean as the worst value.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import DiceHelper, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from torch import Tensor

from monai_vit3d.data.errors import ScoreError

from .components import Detection, detect_components

NSD_MM = 2.0
_ROUNDING = 1 + 1e-5  # of a tolerance: spacings come from float32 affines
_MAX_LABEL = 2**16  # values up to which one pass finds the boxes of all labels

Box = tuple[slice, ...]


@dataclass(frozen=True)
class LabelScores:
    """The scores of one class of one case; those of an absent class are NaN.

    Args:
        label: its value.
        name: what it stands for.
        dice: overlap, 0 to 1.
        nsd_voxel: normalised surface Dice (Nikolov et al. 2018, arXiv:1809.04430): share of both surfaces that lies
            within a tolerance of the other one, here one voxel along each axis, whatever its spacing.
        nsd_mm: the same, the tolerance in mm.
        hd95_mm: the larger of the two directed 95th percentiles of the distances between the surfaces.
        volume_ml: of the prediction.
        reference_ml: of the reference.
        true_positives: predicted components that match one of the reference.
        false_positives: predicted components without a match.
        false_negatives: components of the reference without a match.
    """

    label: int
    name: str
    dice: float
    nsd_voxel: float
    nsd_mm: float
    hd95_mm: float
    volume_ml: float
    reference_ml: float
    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def volume_difference_ml(self) -> float:
        """Prediction minus reference."""
        return self.volume_ml - self.reference_ml

    @property
    def detection(self) -> Detection:
        """The components that match, and those that do not."""
        return Detection(self.true_positives, self.false_positives, self.false_negatives)


def score_labels(
    prediction: NDArray,
    reference: NDArray,
    spacing_mm: Sequence[float],
    names: Mapping[int, str] | None = None,
    nsd_mm: float = NSD_MM,
    voxel_ml: float | None = None,
) -> list[LabelScores]:
    """Score every label that is present or named, in the order of their values; 0 is background.

    Dice, surface Dice and Hausdorff distance are MONAI's. Surface Dice weighs each piece of surface by its area, as
    DeepMind's original does: counted by voxels, thick slices would weigh too little.

    Args:
        prediction: (H, W, D) integers.
        reference: (H, W, D) integers on the same grid.
        spacing_mm: edge lengths of a voxel along the three axes.
        names: value to name; others are called by their number.
        nsd_mm: the tolerance of ``nsd_mm``.
        voxel_ml: volume of a voxel; None is the product of the spacings.

    Raises:
        ScoreError: no two integer volumes of one shape, or a spacing or tolerance that is not positive.

    Example:
        >>> labels = np.zeros((8, 8, 8), np.uint8)
        >>> labels[2:6, 2:6, 2:6] = 1
        >>> score_labels(labels, labels, (1.0, 1.0, 2.0), {1: "cube"})[0].dice
        1.0
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    _check(prediction, reference, spacing_mm, nsd_mm)
    names = names or {}
    first, second = _boxes(prediction), _boxes(reference)
    values = sorted({*first, *second, *(value for value in names if value != 0)})
    diagonal_mm = math.hypot(*(n * mm for n, mm in zip(prediction.shape, spacing_mm)))
    volume = math.prod(spacing_mm) / 1000 if voxel_ml is None else voxel_ml
    dice_of: Callable = DiceHelper(include_background=True, get_not_nans=False, ignore_empty=False)
    scores = []
    for value in values:
        name = names.get(value, f"label {value}")
        boxes = [boxes[value] for boxes in (first, second) if value in boxes]
        if not boxes:
            scores.append(absent_label(value, name))
            continue
        box = _union(boxes)
        pred, ref = prediction[box] == value, reference[box] == value
        volumes_ml = int(pred.sum()) * volume, int(ref.sum()) * volume
        borders = (0.0, 0.0, diagonal_mm) if len(boxes) == 1 else _borders(pred, ref, spacing_mm, nsd_mm)
        dice = float(dice_of(_tensor(pred), _tensor(ref)))
        scores.append(LabelScores(value, name, dice, *borders, *volumes_ml, *detect_components(pred, ref)))
    return scores


def absent_label(label: int, name: str) -> LabelScores:
    """Make the row of a class that neither map has."""
    nan = math.nan
    return LabelScores(label, name, nan, nan, nan, nan, 0.0, 0.0, 0, 0, 0)


def _check(prediction: NDArray, reference: NDArray, spacing_mm: Sequence[float], nsd_mm: float) -> None:
    integers = prediction.dtype.kind in "biu" and reference.dtype.kind in "biu"
    if prediction.ndim != 3 or prediction.shape != reference.shape or not integers:
        raise ScoreError(
            f"prediction {prediction.dtype} {prediction.shape}, reference {reference.dtype} {reference.shape}; "
            "expected two integer volumes (H, W, D) of one shape."
        )
    lengths = [*spacing_mm, nsd_mm]
    if len(lengths) != 4 or not all(math.isfinite(mm) and mm > 0 for mm in lengths):
        raise ScoreError(f"spacing_mm={tuple(spacing_mm)}, nsd_mm={nsd_mm}; expected positive lengths in mm.")


def _boxes(labels: NDArray) -> dict[int, Box]:
    """Find the bounding box of each label."""
    from scipy.ndimage import find_objects

    if labels.min() < 0 or labels.max() > _MAX_LABEL:  # one pass over dense numbers in their place
        values, codes = np.unique(labels, return_inverse=True)
        boxes = find_objects(codes.reshape(labels.shape).astype(np.int32) + 1)
        return {int(value): box for value, box in zip(values, boxes) if value != 0}
    boxes = find_objects(labels.astype(np.int32, copy=False))
    return {value: box for value, box in enumerate(boxes, 1) if box is not None}


def _union(boxes: Iterable[Box]) -> Box:
    """Join boxes. Outside of it both masks are empty, so the scores inside are those of the whole volume."""
    sides = zip(*boxes)
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)


def _borders(
    prediction: NDArray, reference: NDArray, spacing_mm: Sequence[float], nsd_mm: float
) -> tuple[float, float, float]:
    """Compute surface Dice at one voxel and at ``nsd_mm``, and the Hausdorff distance, of two masks."""
    pred, ref = _tensor(prediction), _tensor(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's metrics give an argument that they deprecate
        in_voxels = _surface_dice(pred, ref, 1.0, (1.0, 1.0, 1.0))
        in_mm = _surface_dice(pred, ref, nsd_mm, spacing_mm)
        hd95 = compute_hausdorff_distance(
            pred, ref, include_background=True, percentile=95, spacing=[float(mm) for mm in spacing_mm]
        )
    return in_voxels, in_mm, float(hd95)


def _surface_dice(pred: Tensor, ref: Tensor, tolerance: float, spacing: Sequence[float]) -> float:
    thresholds, edges = [tolerance * _ROUNDING], [float(length) for length in spacing]
    score = compute_surface_dice(pred, ref, thresholds, include_background=True, spacing=edges, use_subvoxels=True)
    return float(score)


def _tensor(mask: NDArray) -> Tensor:
    """Convert a mask to MONAI's shape: a batch of one, with one channel."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None]
