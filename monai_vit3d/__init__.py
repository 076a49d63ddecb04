"""A 3D Vision Transformer that timm users recognise, MONAI runs, and a NIfTI file goes through in one command."""

from .dash_m import drop_current_folder

drop_current_folder()  # before anything else is imported, from __future__ too

import importlib  # noqa: E402
from typing import Any  # noqa: E402

from .discovery import announce  # noqa: E402

__version__ = "0.1.0"

_HOMES = {
    "DPTDecoder": "decoders.dpt",
    "LightDecoder": "decoders.light",
    "PatchEmbed3D": "layers.patch_embed",
    "Predictor": "pipeline.predictor",
    "PyramidDecoder": "decoders.pyramid",
    "TokenClassifier": "networks.classifier",
    "TokenSegmenter": "networks.segmenter",
    "UNETRDecoder": "decoders.unetr",
    "VisionTransformer3D": "networks.vit3d",
    "apply_lora": "networks.lora",
    "attention_maps": "visualize.attention",
    "backbone_from": "weights.sources",
    "create_model": "weights.create",
    "load_weights": "networks.checkpoints",
    "merge_lora": "networks.lora",
    "set_spacing": "layers.rope",
}
_ROOMS = (
    "bundle", "cli", "data", "decoders", "handlers", "inferers", "layers", "metrics", "networks", "pipeline",
    "pretraining", "visualize", "weights",
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


announce(f"{__name__}.{home}" for home in set(_HOMES.values()))
