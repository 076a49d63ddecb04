"""Run a network over a volume: sliding windows, label maps, mixed precision, flips, other engines."""

from .autocast import AutocastInferer
from .backends import BackendNetwork
from .engines import BACKENDS, ENGINES, resolve_backend
from .entropy import PredictionEntropy
from .invert import LabelInverter, argmax
from .label_inferer import LabelInferer
from .labels import finite, likeliest
from .slices import SliceNetwork, sliding_over_slices
from .spacing import SpacingInferer, spacing_of, told_spacing, unwrapped
from .stitch import CannotStitch, can_stitch, stitch_windows
from .tta import FlipEnsemble, FlipSpread, ensemble_variance, predictive_entropy
from .way_back import WayBack, way_back

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
    "WayBack",
    "argmax",
    "can_stitch",
    "ensemble_variance",
    "finite",
    "likeliest",
    "predictive_entropy",
    "resolve_backend",
    "sliding_over_slices",
    "spacing_of",
    "stitch_windows",
    "told_spacing",
    "unwrapped",
    "way_back",
]
