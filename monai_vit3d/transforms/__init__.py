"""Resampling between grids, its inverse, label maps on the file's grid, masks, and synthetic images."""

from .argmax_classes import argmax, argmax_classes, require_finite_scores
from .inverse_mapping import InverseMapping, trace_inverse
from .label_inversion import LabelInverter
from .masks import BinaryMaskd, CropAroundMass, CropAroundMassd
from .normalize_channels import NormalizeChannelsd
from .spacing import SeparableResample, SeparableSpacing, SeparableSpacingd
from .synthesis import HEAD_STRUCTURES, RandSyntheticHead, RandSyntheticHeadd, mean_centres

__all__ = [
    "BinaryMaskd",
    "CropAroundMass",
    "CropAroundMassd",
    "HEAD_STRUCTURES",
    "InverseMapping",
    "LabelInverter",
    "NormalizeChannelsd",
    "RandSyntheticHead",
    "RandSyntheticHeadd",
    "SeparableResample",
    "SeparableSpacing",
    "SeparableSpacingd",
    "argmax",
    "argmax_classes",
    "mean_centres",
    "trace_inverse",
    "require_finite_scores",
]
