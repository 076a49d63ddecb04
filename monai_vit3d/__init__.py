"""A 3D Vision Transformer that timm users recognise, MONAI runs, and a NIfTI file goes through in one command."""

from .dash_m import drop_current_folder

drop_current_folder()  # before anything else is imported, from __future__ too

import importlib  # noqa: E402
import sys  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from .deprecated import OldModules  # noqa: E402
from .discovery import announce  # noqa: E402

__version__ = "0.2.0"

_HOMES = {
    "DPTDecoder": "decoders.dpt",
    "Embedd": "pipeline.embedder",
    "Embedder": "pipeline.embedder",
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
    "input_transform": "weights.recipes",
    "load_weights": "networks.checkpoints",
    "merge_lora": "networks.lora",
    "set_spacing": "layers.rope",
}
_ROOMS = (
    "bundle", "cli", "data", "decoders", "evaluation", "handlers", "inferers", "layers", "metrics", "networks",
    "pipeline", "planning", "pretraining", "serving", "training", "transforms", "visualize", "weights",
)  # fmt: skip
__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:  # for type checkers and editors, which do not run __getattr__
    from . import bundle as bundle
    from . import data as data
    from . import decoders as decoders
    from . import evaluation as evaluation
    from . import handlers as handlers
    from . import inferers as inferers
    from . import layers as layers
    from . import metrics as metrics
    from . import networks as networks
    from . import pipeline as pipeline
    from . import planning as planning
    from . import pretraining as pretraining
    from . import serving as serving
    from . import training as training
    from . import transforms as transforms
    from . import visualize as visualize
    from . import weights as weights
    from .decoders.dpt import DPTDecoder as DPTDecoder
    from .decoders.light import LightDecoder as LightDecoder
    from .decoders.pyramid import PyramidDecoder as PyramidDecoder
    from .decoders.unetr import UNETRDecoder as UNETRDecoder
    from .layers.patch_embed import PatchEmbed3D as PatchEmbed3D
    from .layers.rope import set_spacing as set_spacing
    from .networks.checkpoints import load_weights as load_weights
    from .networks.classifier import TokenClassifier as TokenClassifier
    from .networks.lora import apply_lora as apply_lora
    from .networks.lora import merge_lora as merge_lora
    from .networks.segmenter import TokenSegmenter as TokenSegmenter
    from .networks.vit3d import VisionTransformer3D as VisionTransformer3D
    from .pipeline.embedder import Embedd as Embedd
    from .pipeline.embedder import Embedder as Embedder
    from .pipeline.predictor import Predictor as Predictor
    from .visualize.attention import attention_maps as attention_maps
    from .weights.create import create_model as create_model
    from .weights.recipes import input_transform as input_transform
    from .weights.sources import backbone_from as backbone_from
else:

    def __getattr__(name: str) -> Any:
        # PEP 562: torch, timm and monai take seconds to import, so a public name loads on its first use
        if name in _HOMES:
            return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        if name in _ROOMS:
            return importlib.import_module(f"{__name__}.{name}")
        # with name and object, Python asks for the nearest public name
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])


sys.meta_path.append(OldModules())
announce(f"{__name__}.{home}" for home in set(_HOMES.values()))
