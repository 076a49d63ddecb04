"""Let the trained folds of a bundle predict cases of its split, and pair the outputs with the labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.bundle.metadata import Metadata, read_metadata
from monai_vit3d.data.datalist import datalist
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import write_text_atomic

from .pairs import EvaluationCase

if TYPE_CHECKING:
    from monai_vit3d.pipeline.plan import Plan

EVALUATED_SECTIONS = ("validation", "testing")


@dataclass(frozen=True)
class PredictionRun:
    """How a run of predictions is made, and which functions are called on the way.

    Args:
        device: a torch device; None takes a GPU where there is one.
        safe: whether to refuse a bundle whose config is more than settings.
        on_plan: is given the plan of each run before it begins.
        on_record: is given the record of each case that was predicted.
    """

    device: str | None = None
    safe: bool = False
    on_plan: Callable[[Plan], None] = lambda plan: None
    on_record: Callable[[Mapping[str, Any]], None] = lambda record: None


def trained_folds(bundle: Path, folds: Sequence[int] | None = None) -> list[int]:
    """List the folds whose training is finished.

    Args:
        bundle: its folder.
        folds: take these alone.

    Raises:
        WeightsError: none is, or one of those is not.
    """
    from monai_vit3d.weights import fold_files

    files = fold_files(bundle / "models", folds)
    return [int(match[1]) for file in files if (match := re.search(r"fold_(\d+)\.pt\Z", str(file)))]


def segments(metadata: Metadata) -> bool:
    """Return whether a bundle gives label maps; a plan of `vit3d init` names other tasks."""
    plan = metadata.content.get("plan")
    return not metadata.classifies and not (isinstance(plan, dict) and plan.get("task"))


def names_without_background(bundle: Path) -> dict[int, str]:
    """Read the names of a bundle's labels, background left out.

    Raises:
        UsageError: it is no bundle for segmentation.
        BundleError: its metadata cannot be used.
    """
    metadata = read_metadata(bundle)
    if not segments(metadata):
        raise UsageError(f"{bundle}: a classifier or regressor; expected a bundle that gives label maps.")
    return {value: name for value, name in metadata.channel_names.items() if value != 0}


def predict_section(
    bundle: Path,
    section: str,
    folds: Sequence[int],
    output: Path,
    how: PredictionRun = PredictionRun(),
) -> list[EvaluationCase]:
    """Predict label maps as :func:`predict_items`, and pair them with the labels; arguments and errors as there."""
    return [_case(item, folder) for item, folder in predict_items(bundle, section, folds, output, how)]


def predict_items(
    bundle: Path, section: str, folds: Sequence[int], output: Path, how: PredictionRun = PredictionRun()
) -> list[tuple[Mapping[str, Any], Path]]:
    """Predict the validation cases of each fold by that fold alone, or the test cases by all folds together.

    What is there already, of the same weights and images, is kept.

    Args:
        bundle: its folder.
        section: one of ``EVALUATED_SECTIONS``.
        folds: whose training is finished.
        output: the folder to predict into; each fold gets one below it, ``fold_K``, the test cases ``testing``.
        how: device, safety, progress.

    Returns:
        Each case of the split, and the folder that has its prediction.

    Raises:
        UsageError: an unknown section.
        DatasetError: no split of `vit3d init`, or no cases of the section.
    """
    if section not in EVALUATED_SECTIONS:
        raise UsageError(f"section={section}; expected one of {', '.join(EVALUATED_SECTIONS)}.")
    split = bundle / "configs" / "split.json"
    cases: list[tuple[Mapping[str, Any], Path]] = []
    runs = [(f"fold_{fold}", [fold], fold) for fold in folds]
    for name, members, fold in [("testing", list(folds), 0)] if section == "testing" else runs:
        items = datalist(split, section, fold)
        _predict(bundle, items, output / name, members, how)
        cases += [(item, output / name) for item in items]
    return cases


def _predict(
    bundle: Path, items: Iterable[Mapping[str, Any]], output: Path, folds: Sequence[int], how: PredictionRun
) -> None:
    from monai_vit3d.pipeline.folder import predict_folder

    listed = [{"image": item["image"], "name": item["name"]} for item in items]
    table = output.with_suffix(".json")
    write_text_atomic(json.dumps(listed, indent=1), table)
    predict_folder(
        table,
        output,
        bundle,
        existing="resume",
        overrides={"folds": list(folds)},
        device=how.device,
        safe=how.safe,
        include_labels=True,  # the split says that they are images
        anyway=True,  # leaving out the cases that are hard would flatter
        on_plan=how.on_plan,
        on_case=how.on_record,
    )


def _case(item: Mapping[str, Any], output: Path) -> EvaluationCase:
    name = item["name"]
    prediction = output / f"{name}_seg.nii.gz"
    return EvaluationCase(name, prediction, Path(item["label"]), Path(item["image"][0]), item["subject"])
