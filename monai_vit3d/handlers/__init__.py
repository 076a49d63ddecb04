"""Handlers for MONAI's engines: reproducible and resumable trainings, what they write, scores, pretraining."""

from typing import Any

from monai_vit3d.deprecated import find_renamed

from .attach_handlers import AttachHandlers
from .calibration import Calibration, calibrate
from .checkpoint import AtomicCheckpoint, save_atomic
from .class_watch import ClassWatch
from .classification import ClassificationMetric, PredictionsCSV
from .clip_gradients import ClipGradients
from .determinism import EpochSeed
from .ema import EMAHandler, moving_average
from .feature_monitor import FeatureMonitor
from .finite import FiniteCheck
from .freeze import FreezeEncoder
from .learning_curve import LearningCurve
from .mixup import PrepareBatchMixUp
from .overlays import ValidationOverlays
from .pretraining import PrepareBatchMasked, StepSchedule
from .processes import end_with_one_line, join_process_group, leave_process_group, one_process_group
from .publish import PublishModel

__all__ = [
    "AtomicCheckpoint",
    "AttachHandlers",
    "Calibration",
    "ClassWatch",
    "ClassificationMetric",
    "ClipGradients",
    "EMAHandler",
    "EpochSeed",
    "FeatureMonitor",
    "FiniteCheck",
    "FreezeEncoder",
    "LearningCurve",
    "PrepareBatchMasked",
    "PrepareBatchMixUp",
    "PredictionsCSV",
    "PublishModel",
    "StepSchedule",
    "ValidationOverlays",
    "calibrate",
    "end_with_one_line",
    "join_process_group",
    "leave_process_group",
    "moving_average",
    "one_process_group",
    "save_atomic",
]


def __getattr__(name: str) -> Any:
    return find_renamed(__name__, name)
