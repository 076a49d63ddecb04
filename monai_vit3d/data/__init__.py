"""Find, check, read and write files and data sets."""

from __future__ import annotations

from typing import Any

from ..deprecated import find_renamed
from .decathlon import decathlon_classes, decathlon_split
from .errors import (
    BundleError,
    DatasetError,
    ImageError,
    ScoreError,
    TrainingCollapsed,
    TrainingDiverged,
    UsageError,
    Vit3dError,
    WeightsError,
)
from .task_names import resolve_task

_NIFTI = ("NiftiReader", "cut_box", "label_volumes_ml", "nifti_files")
_NIFTI += ("write_labels", "write_map")
_READERS = ("read_grid", "read_volume")
_VOLUME = ("Grid", "Volume")
_LABELS = ("CheckLabelsd",)
_MEDMNIST3D = ("MedMNIST3DDataset", "class_names", "medmnist3d_info")
_TABLES = ("check_classes", "class_balanced_weights", "labelled_volumes", "steps_in")
__all__ = ["BundleError", "DatasetError", "ImageError", "ScoreError", "TrainingCollapsed", "UsageError", "Vit3dError"]
__all__ += ["TrainingDiverged", "WeightsError", "decathlon_classes", "decathlon_split", "resolve_task"]
__all__ += [*_NIFTI, *_READERS, *_VOLUME, *_LABELS, *_MEDMNIST3D, *_TABLES]


def __getattr__(name: str) -> Any:
    # nibabel, monai and numpy load when a function that needs them is first used
    if name in _NIFTI:
        from . import nifti

        return getattr(nifti, name)
    if name in _READERS:
        from . import readers

        return getattr(readers, name)
    if name in _VOLUME:
        from . import volume

        return getattr(volume, name)
    if name in _LABELS:
        from . import labels

        return getattr(labels, name)
    if name in _MEDMNIST3D:
        from . import medmnist3d

        return getattr(medmnist3d, name)
    if name in _TABLES:
        from . import csv_labels

        return getattr(csv_labels, name)
    return find_renamed(__name__, name)
