"""Run a network over a volume: sliding windows, label maps, mixed precision, flips and rotations, other engines."""

from typing import Any

from monai_vit3d.deprecated import find_renamed

from .affine_ensemble import AffineEnsemble
from .atlas import AtlasInferer
from .autocast import AutocastInferer, computes_in_bfloat16
from .backends import BackendNetwork
from .engines import BACKENDS, ENGINES, resolve_backend
from .entropy import PredictionEntropy
from .head_inferer import HeadInferer
from .head_localizer import HeadLocalizer, HeadPose
from .label_inferer import LabelInferer
from .localized import LocalizedInferer
from .output_maps import OUTPUT_MAPS, OutputMap
from .slices import SliceNetwork, sliding_over_slices
from .spacing import SpacingInferer, spacing_of, unwrap_inferer, with_spacing
from .stitch import CannotStitch, can_stitch, stitch_windows
from .tta import FlipEnsemble, FlipInferer, FlipSpread, ensemble_variance, predictive_entropy
from .upright import UprightInferer

__all__ = [
    "BACKENDS",
    "ENGINES",
    "OUTPUT_MAPS",
    "OutputMap",
    "AffineEnsemble",
    "AtlasInferer",
    "AutocastInferer",
    "BackendNetwork",
    "CannotStitch",
    "FlipEnsemble",
    "FlipInferer",
    "FlipSpread",
    "HeadInferer",
    "HeadLocalizer",
    "HeadPose",
    "PredictionEntropy",
    "LabelInferer",
    "LocalizedInferer",
    "SliceNetwork",
    "SpacingInferer",
    "UprightInferer",
    "can_stitch",
    "computes_in_bfloat16",
    "ensemble_variance",
    "predictive_entropy",
    "resolve_backend",
    "sliding_over_slices",
    "spacing_of",
    "stitch_windows",
    "with_spacing",
    "unwrap_inferer",
]


def __getattr__(name: str) -> Any:
    return find_renamed(__name__, name)
