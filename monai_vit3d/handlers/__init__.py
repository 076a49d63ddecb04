"""Handlers for MONAI's engines: moving averages, reproducible epochs, atomic checkpoints, scores, pretraining."""

from typing import Any

from monai_vit3d.deprecated import find_renamed

from .attach_handlers import AttachHandlers
from .calibration import Calibration, calibrate
from .checkpoint import AtomicCheckpoint, save_atomic
from .classification import ClassificationMetric, PredictionsCSV
from .determinism import EpochSeed
from .ema import EMAHandler, moving_average
from .feature_monitor import FeatureMonitor
from .finite import FiniteCheck
from .mixup import PrepareBatchMixUp
from .pretraining import PrepareBatchMasked, StepSchedule
from .processes import end_with_one_line, leave_process_group

__all__ = [
    "AtomicCheckpoint",
    "AttachHandlers",
    "Calibration",
    "ClassificationMetric",
    "EMAHandler",
    "EpochSeed",
    "FeatureMonitor",
    "FiniteCheck",
    "PrepareBatchMasked",
    "PrepareBatchMixUp",
    "PredictionsCSV",
    "StepSchedule",
    "calibrate",
    "end_with_one_line",
    "leave_process_group",
    "moving_average",
    "save_atomic",
]


def __getattr__(name: str) -> Any:
    return find_renamed(__name__, name)
