"""Weights of other projects, one source family a file."""

from .monai import from_monai_unetr, to_monai_unetr

__all__ = ["from_monai_unetr", "to_monai_unetr"]
