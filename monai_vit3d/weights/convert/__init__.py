"""Weights of other projects, one source family a file."""

from .monai import from_monai_unetr, to_monai_unetr
from .monai_vit import from_monai_vit, to_monai_vit

__all__ = ["from_monai_unetr", "from_monai_vit", "to_monai_unetr", "to_monai_vit"]
