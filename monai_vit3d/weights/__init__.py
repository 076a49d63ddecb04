"""Weights: reading them safely, encoders' own files, and mapping those of other projects."""

from .backbone import load_backbone, save_backbone
from .files import load_weights

__all__ = ["load_backbone", "load_weights", "save_backbone"]
