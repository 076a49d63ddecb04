"""A 3D Vision Transformer that timm users recognise, MONAI runs, and a NIfTI file goes through in one command."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "DPTDecoder": "decoders",
    "LightDecoder": "decoders",
    "PatchEmbed3D": "layers",
    "PyramidDecoder": "decoders",
    "TokenClassifier": "networks",
    "TokenSegmenter": "networks",
    "UNETRDecoder": "decoders",
    "VisionTransformer3D": "networks",
    "apply_lora": "networks",
    "attention_maps": "visualize",
    "backbone_from": "weights",
    "create_model": "weights",
    "load_weights": "weights",
    "merge_lora": "networks",
    "set_spacing": "layers",
}
_ROOMS = (
    "data", "decoders", "handlers", "inferers", "layers", "metrics", "networks", "pipeline", "pretraining",
    "visualize", "weights",
)  # fmt: skip
__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    # PEP 562: torch, timm and monai take seconds to import, so a public name loads on its first use
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
