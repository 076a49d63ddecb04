"""Build a bundle's ``metadata.json``: what MONAI's schema asks for, and the numbers that all configs share."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import monai_vit3d

from .dataset import LabelledDataset
from .plan import TrainingPlan

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
REQUIRED = ("timm", "nibabel", "pytorch-ignite", "tensorboard", "scikit-image")
# decisions that prediction needs, too
SHARED = ("orientation", "spacing_mm", "intensity", "flip_axes", "tta_degrees", "tta_scales", "overlap")


def bundle_metadata(
    dataset: LabelledDataset, fingerprint: Mapping[str, Any], plan: TrainingPlan, name: str
) -> dict[str, Any]:
    """Build the content of ``metadata.json``.

    Args:
        dataset: for the names of channels and classes.
        fingerprint: for the scale of a regression's values.
        plan: the recipe.
        name: of the task, for people.
    """
    is_segmentation = dataset.task == "segmentation"
    classes = ", ".join(f"{value} {text}" for value, text in dataset.class_names.items()) or "a number for each volume"
    channels = ", ".join(dataset.channel_names)
    names = [text for value, text in dataset.class_names.items() if value or not is_segmentation]
    shared = {key: plan[key] for key in SHARED if key in plan}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "planned by vit3d init"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch").partition("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {
            "monai-vit3d": monai_vit3d.__version__,
            **{package: version for package in REQUIRED if (version := _version(package))},
        },
        "name": name,
        "task": f"{dataset.task.capitalize()} of {', '.join(names) or 'whole volumes'}",
        "description": f"A 3D Vision Transformer gives {classes} from {channels}.",
        "authors": "not given",
        "copyright": "not given",
        "data_source": "not given",
        "data_type": "nibabel",
        "image_classes": f"channels: {channels}",
        "label_classes": classes,
        "pred_classes": classes,
        "intended_use": "Research only; not for clinical use",
        "network_data_format": {
            "inputs": {"image": _image(dataset, plan)},
            "outputs": {"pred": _labels(dataset, plan) if is_segmentation else _scores(dataset)},
        },
        "plan": shared | ({"keep_largest": []} if is_segmentation else _target(dataset, fingerprint)),
    }


def _target(dataset: LabelledDataset, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the head's outputs mean: classes, or a value that was standardised for the training."""
    if dataset.task == "classification":
        return {"task": "multi-class", "target": {"mean": 0, "std": 1}}
    facts = fingerprint["target"]
    return {"task": "regression", "target": {"mean": facts["mean"], "std": facts["std"] or 1}}


def _image(dataset: LabelledDataset, plan: TrainingPlan) -> dict[str, Any]:
    kinds = dict.fromkeys(plan["modality"])
    return {
        "type": "image",
        "format": "hounsfield" if list(kinds) == ["CT"] else "magnitude",
        "modality": ", ".join(kinds),
        "num_channels": len(dataset.channel_names),
        "spatial_shape": list(plan["window"]),
        "dtype": "float32",
        "value_range": [-10, 10],  # after normalisation
        "is_patch_data": dataset.task == "segmentation",
        "channel_def": {str(i): text for i, text in enumerate(dataset.channel_names)},
    }


def _labels(dataset: LabelledDataset, plan: TrainingPlan) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(dataset.class_names),
        "spatial_shape": list(plan["window"]),
        "dtype": "float32",
        "value_range": [0, len(dataset.class_names) - 1],
        "is_patch_data": True,
        "channel_def": {str(value): text for value, text in dataset.class_names.items()},
    }


def _scores(dataset: LabelledDataset) -> dict[str, Any]:
    names = dataset.class_names or {0: "value"}
    return {
        "type": "probabilities",
        "format": "classes",
        "num_channels": len(names),
        "spatial_shape": [len(names)],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(value): text for value, text in names.items()},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # an extra that is not installed here
        return ""
