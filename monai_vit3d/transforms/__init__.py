"""Resampling between grids, its inverse, label maps on the file's grid, masks, and synthetic images."""

from .argmax_classes import argmax, argmax_classes, require_finite_scores
from .inverse_mapping import InverseMapping, trace_inverse
from .label_inversion import LabelInverter
from .masks import BinaryMaskd, CropAroundMass, CropAroundMassd
from .normalize_channels import NormalizeChannelsd
from .spacing import SeparableResample, SeparableSpacing, SeparableSpacingd
from .synthesis import (
    BRAIN_STRUCTURES,
    HEAD_STRUCTURES,
    RandSyntheticHead,
    RandSyntheticHeadd,
    UprightHeadd,
    mean_atlas,
    mean_centres,
    save_atlas,
)

__all__ = [
    "BinaryMaskd",
    "CropAroundMass",
    "CropAroundMassd",
    "BRAIN_STRUCTURES",
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
    "UprightHeadd",
    "mean_atlas",
    "mean_centres",
    "save_atlas",
    "trace_inverse",
    "require_finite_scores",
]
