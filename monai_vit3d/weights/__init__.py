"""Weights: reading them safely, encoders' own files, and those of other projects made ours."""

from .backbone import embed_layer_of, load_backbone, save_backbone
from .convert.timm2d import checkpoint_filter_fn, create_timm2d, from_timm2d, load_timm2d
from .create import create_model
from .files import load_weights
from .report import LoadReport

__all__ = [
    "LoadReport",
    "checkpoint_filter_fn",
    "create_model",
    "create_timm2d",
    "embed_layer_of",
    "from_timm2d",
    "load_backbone",
    "load_timm2d",
    "load_weights",
    "save_backbone",
]
