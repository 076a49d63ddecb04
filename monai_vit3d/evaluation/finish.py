"""Finish a training: choose the postprocessing on validation cases, and measure what was trained on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.data.datalist import datalist
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import write_text_atomic
from monai_vit3d.data.volume import Array
from monai_vit3d.pipeline.measure_training import format_json, measure_training, write_trained_on

from .fold_predictions import PredictionRun, names_without_background, predict_section, segments, trained_folds
from .pairs import EvaluationCase
from .scoring import read_pair

logger = logging.getLogger(__name__)


class LargestComponent(NamedTuple):
    """What keeping only the largest component of a class does to its mean validation Dice.

    Args:
        name: of the class.
        before: with all components.
        after: with the largest one alone.
        pieces: the most components that a label of the class has.
    """

    name: str
    before: float
    after: float
    pieces: int

    @property
    def kept(self) -> bool:
        """Whether it raises the Dice, and no label has several components, as lesions have."""
        return self.after > self.before and self.pieces < 2

    def __str__(self) -> str:
        """Format what was chosen, and why."""
        dice = f"validation Dice {self.before:.4f} with all components, {self.after:.4f} with the largest alone"
        if self.kept:
            return f"{self.name}: only the largest component is kept ({dice})"
        lesions = f"; labels have up to {self.pieces} components" if self.pieces > 1 else ""
        return f"{self.name}: all components are kept ({dice}{lesions})"


def finish_training(
    bundle: str | Path, folds: Sequence[int] | None = None, *, device: str | None = None, safe: bool = False
) -> dict[int, LargestComponent]:
    """Choose for which classes to keep the largest component, and measure ``trained_on``; both go into metadata.json.

    As nnU-Net does (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), only the largest component of a class is kept
    where that raises its mean Dice over the validation cases, each predicted by the fold that has not seen it. It
    changes no other class: what is removed becomes background. A class of which any of these cases has several
    components in its label, as lesions have, keeps all: of an undertrained network, the rule would remove true ones.

    Args:
        bundle: the folder of a bundle that ``vit3d init`` made; its ``plan.keep_largest`` is replaced.
        folds: trained folds; None takes all.
        device: a torch device; None takes a GPU where there is one.
        safe: whether to refuse a bundle whose config is more than settings.

    Returns:
        Both Dice of each class, by its value; of a classifier or regressor, which is left as it is, none.

    Raises:
        UsageError: no split, or no plan in metadata.json.
        WeightsError: no finished training.
        ImageError: a prediction or label that cannot be read.
    """
    root = Path(bundle)
    if not segments(read_metadata(root)):
        return {}
    names, trained = names_without_background(root), trained_folds(root, folds)
    _write_keep_largest(root, [])  # the choice is made on all components
    labelled = datalist(root / "configs" / "split.json", "training")
    write_trained_on(measure_training(labelled, root, device=device, safe=safe), root)
    # last, so that these predictions stay valid where nothing is removed: a change of configs makes them anew
    cases = predict_section(root, "validation", trained, root / "predictions", PredictionRun(device, safe))
    chosen = compare_largest_components(cases, names)
    for row in chosen.values():
        logger.info("%s", row)
    _write_keep_largest(root, [value for value, row in chosen.items() if row.kept])
    return chosen


def compare_largest_components(
    cases: Sequence[EvaluationCase], names: Mapping[int, str]
) -> dict[int, LargestComponent]:
    """Compute the mean Dice of each class with all of its components, and with the largest one alone.

    Args:
        cases: predictions and labels; a class that a case has in neither is left out there.
        names: value to name.

    Raises:
        ImageError: a file that cannot be read, or another grid.
    """
    before: dict[int, list[float]] = {value: [] for value in names}
    after: dict[int, list[float]] = {value: [] for value in names}
    pieces = dict.fromkeys(names, 0)
    for case in cases:
        prediction, label, _ = read_pair(case)
        for value in names:
            mask, reference = prediction == value, label == value
            if mask.any() or reference.any():
                before[value].append(_dice(mask, reference))
                after[value].append(_dice(_largest(mask), reference))
                pieces[value] = max(pieces[value], _components(reference)[1])
    return {
        value: LargestComponent(name, _mean(before[value]), _mean(after[value]), pieces[value])
        for value, name in names.items()
    }


def _largest(mask: Array) -> Array:
    """Keep the largest component, as MONAI's KeepLargestConnectedComponent does by default."""
    components, count = _components(mask)
    if count < 2:
        return mask
    return components == np.bincount(components.ravel())[1:].argmax() + 1


def _components(mask: Array) -> tuple[Array, int]:
    """Number the components that are connected by faces, edges or corners, from 1, and count them."""
    from scipy.ndimage import label

    components, count = label(mask, np.ones((3, 3, 3), bool))
    return components, int(count)


def _dice(mask: Array, reference: Array) -> float:
    return float(2 * np.count_nonzero(mask & reference) / (np.count_nonzero(mask) + np.count_nonzero(reference)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _write_keep_largest(bundle: Path, values: Sequence[int]) -> None:
    path = bundle / "configs" / "metadata.json"
    content = dict(read_metadata(bundle).content)
    if not isinstance(content.get("plan"), dict):
        raise UsageError(f"{path}: no plan; vit3d init writes one. Give a bundle that it made.")
    content["plan"]["keep_largest"] = list(values)
    write_text_atomic(format_json(content) + "\n", path)
