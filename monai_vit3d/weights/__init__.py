"""Weights: reading them safely, and mapping those of other projects."""

from .files import load_backbone, load_weights

__all__ = ["load_backbone", "load_weights"]
