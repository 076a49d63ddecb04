"""Serve what the command does as tools of the Model Context Protocol: ``vit3d serve`` as a function."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {"server": ("build_server", "call_served", "serve_stdio")}
__all__ = [name for names in _LAZY.values() for name in names]


def __getattr__(name: str) -> Any:
    # PyTorch is imported when something is served
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
