"""Evaluate a trained bundle: its folds on the cases that they have not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.bundle.metadata import Metadata, read_metadata
from monai_vit3d.data.errors import UsageError
from monai_vit3d.metrics.segmentation import NSD_MM

from .fold_predictions import (
    PredictionRun,
    names_without_background,
    predict_items,
    predict_section,
    segments,
    trained_folds,
)
from .results import Evaluation, OnCase, evaluate_cases
from .volumes import VolumeEvaluation, evaluate_volumes

if TYPE_CHECKING:
    from monai_vit3d.pipeline.plan import Plan


def evaluate_bundle(
    bundle: str | Path,
    output: str | Path | None = None,
    *,
    section: str = "validation",
    folds: Sequence[int] | None = None,
    nsd_mm: float = NSD_MM,
    against: str | Path | None = None,
    device: str | None = None,
    safe: bool = False,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_record: Callable[[Mapping[str, Any]], None] = lambda record: None,
    on_case: OnCase = lambda case: None,
) -> Evaluation | VolumeEvaluation:
    """Predict the cases of a bundle's split and score them, see :func:`.folders.evaluate_folders`.

    Of a classifier or regressor, its answers are scored, see :func:`.volumes.evaluate_volumes`.

    Each trained fold predicts its own validation cases, which it has not seen, into ``predictions/fold_K`` of the
    bundle; the test cases are predicted by all folds together, into ``predictions/testing``. What is there already
    is kept, so that a second evaluation takes no time for it.

    Args:
        bundle: the folder of a bundle that ``vit3d init`` made and ``vit3d train`` trained.
        output: OUT; None is ``evaluation`` in the bundle, for the test cases ``evaluation_testing``.
        section: ``"validation"`` or ``"testing"``.
        folds: trained folds; None takes all.
        nsd_mm: tolerance in mm of one of the two surface Dice.
        against: compare with this, case by case: the folder of another evaluation, of a bundle that was evaluated, or
            of other predictions.
        device: a torch device; None takes a GPU where there is one.
        safe: whether to refuse a bundle whose config is more than settings.
        on_plan: is given the plan of each run of predictions before it begins.
        on_record: is given the record of each case that was predicted.
        on_case: is given each case when it is scored.

    Raises:
        UsageError: no split or no cases, or arguments out of range; or ``against`` has none of these cases.
        WeightsError: no finished training.
        BundleError: a bundle that cannot be used, or is not safe.
    """
    root = Path(bundle)
    metadata, trained = read_metadata(root), trained_folds(root, folds)
    how = PredictionRun(device, safe, on_plan, on_record)
    if output is None:
        output = root / ("evaluation" if section == "validation" else f"evaluation_{section}")
    title = f"{metadata.name}, {section}, folds {', '.join(map(str, trained))}"
    if not segments(metadata):
        items = predict_items(root, section, trained, root / "predictions", how)
        return evaluate_volumes(items, _class_names(metadata), title, Path(output), against)
    names = names_without_background(root)
    cases = predict_section(root, section, trained, root / "predictions", how)
    return evaluate_cases(cases, names, title, output, nsd_mm, against, (), on_case)


def _class_names(metadata: Metadata) -> list[str]:
    """List the classes of a bundle of ``vit3d init`` in their order; none of a regression."""
    plan = metadata.content.get("plan")
    task = plan.get("task") if isinstance(plan, dict) else None
    if task not in ("multi-class", "regression"):
        raise UsageError(
            f"{metadata.name}: no plan of classes or a value; vit3d init writes one. Run its evaluate.yaml."
        )
    return [] if task == "regression" else [name for _, name in sorted(metadata.channel_names.items())]
