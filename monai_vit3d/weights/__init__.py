"""Weights: reading them safely, encoders' own files, and mapping those of other projects."""

from .backbone import embed_layer_of, load_backbone, save_backbone
from .files import load_weights

__all__ = ["embed_layer_of", "load_backbone", "load_weights", "save_backbone"]
