"""What MONAI's engines need and do not have: moving averages, reproducible epochs, atomic checkpoints."""

from .checkpoint import AtomicCheckpoint, save_atomic
from .determinism import EpochSeed
from .ema import EMAHandler, moving_average

__all__ = ["AtomicCheckpoint", "EMAHandler", "EpochSeed", "moving_average", "save_atomic"]
