"""Self-supervised pretraining on volumes: I-JEPA and MAE, their masks and schedules, probes of frozen features."""

from typing import Any

from monai_vit3d.deprecated import find_renamed

from .collapse import (
    CollapseAlarm,
    CollapseReport,
    collapse_report,
    cosine_to_mean,
    feature_std,
    rankme,
    target_variance,
)
from .features import Features, extract_features
from .ijepa import IJEPA, IJEPAOutput
from .mae import MAE, MAEOutput
from .masking import JEPAMasks, MAEMasks, sample_block_masks, sample_jepa_masks, sample_random_masks
from .patches import patchify, unpatchify
from .probe import ProbeScore, knn_probe, knn_value_probe, logistic_probe, ridge_probe
from .schedules import learning_rate_at, momentum_at, weight_decay_at

__all__ = [
    "IJEPA",
    "MAE",
    "CollapseAlarm",
    "CollapseReport",
    "Features",
    "IJEPAOutput",
    "JEPAMasks",
    "MAEMasks",
    "MAEOutput",
    "ProbeScore",
    "cosine_to_mean",
    "collapse_report",
    "extract_features",
    "feature_std",
    "knn_probe",
    "knn_value_probe",
    "learning_rate_at",
    "logistic_probe",
    "momentum_at",
    "patchify",
    "rankme",
    "ridge_probe",
    "sample_block_masks",
    "sample_jepa_masks",
    "sample_random_masks",
    "target_variance",
    "unpatchify",
    "weight_decay_at",
]


def __getattr__(name: str) -> Any:
    return find_renamed(__name__, name)
