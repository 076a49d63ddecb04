"""Evaluate a folder of predictions against a folder of labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monai_vit3d.metrics.segmentation import NSD_MM

from .pairs import pair_files
from .results import Evaluation, OnCase, evaluate_cases


def evaluate_folders(
    predictions: str | Path,
    labels: str | Path,
    output: str | Path | None = None,
    *,
    class_names: Mapping[int, str] | None = None,
    images: str | Path | None = None,
    nsd_mm: float = NSD_MM,
    against: str | Path | None = None,
    on_case: OnCase = lambda case: None,
) -> Evaluation:
    """Score every label map of a folder against its label, wherever both come from.

    OUT gets ``cases.csv`` (a row for each case and class), ``classes.csv``, ``summary.json`` and ``report.html``, with
    the worst cases first. How absent classes are counted says :mod:`monai_vit3d.metrics.segmentation`.

    Args:
        predictions: the folder with predicted label maps, ``NAME_seg.nii.gz`` as `vit3d predict` writes them or others.
        labels: the folder with labels on the predictions' grids.
        output: OUT; None writes nothing.
        class_names: label value to name; other values are called by their number.
        images: the folder with images, to show under the labels.
        nsd_mm: tolerance in mm of one of the two surface Dice; the other one is at one voxel.
        against: compare with this, case by case: the folder of another evaluation, of a bundle that was evaluated, or
            of other predictions.
        on_case: is given each case when it is scored.

    Returns:
        Scores by case and class; a case that could not be scored has its error there.

    Raises:
        UsageError: folders that are not there or have no common names, or ``nsd_mm`` is not positive.

    Example:
        >>> result = evaluate_folders("out", "labelsTs", "evaluation", class_names={1: "liver"})  # doctest: +SKIP
        >>> result.classes[0].means["dice"].mean  # doctest: +SKIP
    """
    pairing = pair_files(predictions, labels, images)
    title = f"{Path(predictions)} against {Path(labels)}"
    names = {value: name for value, name in (class_names or {}).items() if value != 0}
    return evaluate_cases(pairing.cases, names, title, output, nsd_mm, against, pairing.notes, on_case)
