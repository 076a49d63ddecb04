"""Files and data sets: finding, checking, reading and writing them."""

from __future__ import annotations

from typing import Any

from .decathlon import decathlon_split
from .errors import DatasetError, ImageError, Vit3dError, WeightsError

_NIFTI = ("cut_box", "label_volumes_ml", "nifti_files")
__all__ = ["DatasetError", "ImageError", "Vit3dError", "WeightsError", "decathlon_split", *_NIFTI]


def __getattr__(name: str) -> Any:
    # nibabel loads when a NIfTI function is first used
    if name in _NIFTI:
        from . import nifti

        return getattr(nifti, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
