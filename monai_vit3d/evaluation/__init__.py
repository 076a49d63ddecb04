"""Score predictions against labels: by case and class, with intervals, a page to look at, and a comparison of two."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "folders": ("evaluate_folders",),
    "of_bundle": ("evaluate_bundle",),
    "compare": ("compare_runs",),
    "finish": ("finish_training",),
}
__all__ = [name for names in _LAZY.values() for name in names]


def __getattr__(name: str) -> Any:
    # the command names the functions before PyTorch is imported
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
