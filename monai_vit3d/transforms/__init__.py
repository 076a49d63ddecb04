"""Resampling between grids, its inverse, and label maps on the file's grid."""

from .argmax_classes import argmax, argmax_classes, require_finite_scores
from .inverse_mapping import InverseMapping, trace_inverse
from .label_inversion import LabelInverter
from .normalize_channels import NormalizeChannelsd
from .spacing import SeparableResample, SeparableSpacing, SeparableSpacingd

__all__ = [
    "InverseMapping",
    "LabelInverter",
    "NormalizeChannelsd",
    "SeparableResample",
    "SeparableSpacing",
    "SeparableSpacingd",
    "argmax",
    "argmax_classes",
    "trace_inverse",
    "require_finite_scores",
]
