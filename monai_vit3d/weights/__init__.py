"""Weights: read safely, saved as encoders, converted from other projects, fetched by name."""

from typing import Any

from monai_vit3d.deprecated import find_renamed
from monai_vit3d.networks.checkpoints import load_weights
from monai_vit3d.networks.load_report import LoadReport

from .adapters import load_adapter, save_adapter
from .backbone import embed_layer_of, load_backbone, save_backbone
from .built_from import ensure_weights
from .convert import from_monai_unetr, from_monai_vit, to_monai_unetr, to_monai_vit
from .convert.timm2d import checkpoint_filter_fn, create_timm2d, from_timm2d, load_timm2d
from .convert.timm2d_stats import timm_normalisation
from .create import create_model
from .fetch import fetch_weights, get_weights, list_published, load_published, pin_weights
from .folds import fold_files
from .info import convert_weights, describe_weights
from .published import to_published
from .published_features import load_combiner, load_pool
from .recipes import RECIPE_STEPS, input_transform, load_recipe, recipe_transform
from .sources import Source, backbone_from, identify, read_source
from .start import read_encoder, start_network
from .whole_network import load_network, network_from

__all__ = [
    "RECIPE_STEPS",
    "LoadReport",
    "Source",
    "backbone_from",
    "checkpoint_filter_fn",
    "convert_weights",
    "create_model",
    "create_timm2d",
    "describe_weights",
    "embed_layer_of",
    "ensure_weights",
    "fetch_weights",
    "fold_files",
    "from_monai_unetr",
    "from_monai_vit",
    "from_timm2d",
    "get_weights",
    "identify",
    "input_transform",
    "list_published",
    "load_adapter",
    "load_backbone",
    "load_combiner",
    "load_network",
    "load_pool",
    "load_published",
    "load_recipe",
    "load_timm2d",
    "load_weights",
    "network_from",
    "pin_weights",
    "read_encoder",
    "read_source",
    "recipe_transform",
    "save_adapter",
    "save_backbone",
    "start_network",
    "timm_normalisation",
    "to_monai_unetr",
    "to_monai_vit",
    "to_published",
]


def __getattr__(name: str) -> Any:
    return find_renamed(__name__, name)
