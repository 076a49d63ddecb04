"""Files and data sets: finding, checking, reading and writing them."""

from .decathlon import decathlon_split
from .errors import DatasetError, ImageError, Vit3dError, WeightsError

__all__ = ["DatasetError", "ImageError", "Vit3dError", "WeightsError", "decathlon_split"]
