"""Inferers: how a network is run over a volume."""

from .autocast import AutocastInferer
from .backends import BACKENDS, BackendNetwork, resolve_backend
from .stitch import can_stitch, stitch_windows, unwrapped
from .tta import FlipEnsemble, FlipSpread, ensemble_variance, predictive_entropy

__all__ = [
    "BACKENDS",
    "AutocastInferer",
    "BackendNetwork",
    "FlipEnsemble",
    "FlipSpread",
    "can_stitch",
    "ensemble_variance",
    "predictive_entropy",
    "resolve_backend",
    "stitch_windows",
    "unwrapped",
]
