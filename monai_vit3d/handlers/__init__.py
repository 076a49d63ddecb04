"""What MONAI's engines need and do not have: moving averages, reproducible epochs, atomic checkpoints, scores."""

from .calibration import Calibration, calibrate
from .checkpoint import AtomicCheckpoint, save_atomic
from .classification import ClassificationMetric, PredictionsCSV
from .determinism import EpochSeed
from .ema import EMAHandler, moving_average
from .mixup import MixUpBatch

__all__ = [
    "AtomicCheckpoint",
    "Calibration",
    "ClassificationMetric",
    "EMAHandler",
    "EpochSeed",
    "MixUpBatch",
    "PredictionsCSV",
    "calibrate",
    "moving_average",
    "save_atomic",
]
