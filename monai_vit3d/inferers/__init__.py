"""Run a network over a volume: sliding windows, label maps, mixed precision, flips, other engines."""

from typing import Any

from ..deprecated import find_renamed
from .argmax_classes import argmax_classes, require_finite_scores
from .autocast import AutocastInferer
from .backends import BackendNetwork
from .engines import BACKENDS, ENGINES, resolve_backend
from .entropy import PredictionEntropy
from .inverse_mapping import InverseMapping, trace_inverse
from .label_inferer import LabelInferer
from .label_inversion import LabelInverter, argmax
from .slices import SliceNetwork, sliding_over_slices
from .spacing import SpacingInferer, spacing_of, unwrap_inferer, with_spacing
from .stitch import CannotStitch, can_stitch, stitch_windows
from .tta import FlipEnsemble, FlipSpread, ensemble_variance, predictive_entropy

__all__ = [
    "BACKENDS",
    "ENGINES",
    "AutocastInferer",
    "BackendNetwork",
    "CannotStitch",
    "FlipEnsemble",
    "FlipSpread",
    "PredictionEntropy",
    "LabelInferer",
    "LabelInverter",
    "SliceNetwork",
    "SpacingInferer",
    "InverseMapping",
    "argmax",
    "can_stitch",
    "ensemble_variance",
    "require_finite_scores",
    "argmax_classes",
    "predictive_entropy",
    "resolve_backend",
    "sliding_over_slices",
    "spacing_of",
    "stitch_windows",
    "with_spacing",
    "unwrap_inferer",
    "trace_inverse",
]


def __getattr__(name: str) -> Any:
    return find_renamed(__name__, name)
