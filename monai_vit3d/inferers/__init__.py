"""Inferers: how a network is run over a volume."""

from .autocast import AutocastInferer
from .stitch import can_stitch, stitch_windows, unwrapped
from .tta import FlipEnsemble, FlipSpread, ensemble_variance, predictive_entropy

__all__ = [
    "AutocastInferer",
    "FlipEnsemble",
    "FlipSpread",
    "can_stitch",
    "ensemble_variance",
    "predictive_entropy",
    "stitch_windows",
    "unwrapped",
]
