"""Train a bundle: MONAI's workflow of its train.yaml, with progress, a log, and errors that end in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# by module: MONAI loads when a training starts
_LAZY = {"train": ("TrainedFold", "train_bundle"), "reports": ("EpochReport", "StartReport")}
__all__ = ["EpochReport", "StartReport", "TrainedFold", "train_bundle"]


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
