"""Find, check, read and write files and data sets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from monai_vit3d.deprecated import find_renamed

from .datalist import datalist, folds_of
from .decathlon import decathlon_classes, decathlon_split
from .errors import (
    BundleError,
    DatasetError,
    ImageError,
    ScoreError,
    TrainingCollapsed,
    TrainingDiverged,
    TrainingFailed,
    UsageError,
    Vit3dError,
    WeightsError,
)
from .task_names import resolve_task

# names by module: nibabel, monai and numpy load when a function that needs them is first used
_LAZY = {
    "nifti": ("NiftiReader", "cut_box", "label_volumes_ml", "nifti_files", "write_labels", "write_map"),
    "case_files": ("image_cases",),
    "readers": ("count_volumes", "read_grid", "read_volume", "read_volumes"),
    "volume": ("Grid", "Volume"),
    "labels": ("CheckLabelsd",),
    "medmnist3d": ("MedMNIST3DDataset", "class_names", "medmnist3d_info"),
    "csv_labels": ("check_classes", "class_balanced_weights", "labelled_volumes", "steps_in"),
}
__all__ = ["BundleError", "DatasetError", "ImageError", "ScoreError", "TrainingCollapsed", "UsageError", "Vit3dError"]
__all__ += ["TrainingDiverged", "TrainingFailed", "WeightsError"]
__all__ += ["datalist", "decathlon_classes", "decathlon_split", "folds_of", "resolve_task"]
__all__ += [name for names in _LAZY.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    return find_renamed(__name__, name)
