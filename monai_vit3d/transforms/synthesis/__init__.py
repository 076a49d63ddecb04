"""Synthetic images from label maps, for networks that meet any contrast and pose."""

from .head_labels import HEAD_STRUCTURES, structure_lookup
from .head_template import mean_centres
from .synthetic_head import RandSyntheticHead, RandSyntheticHeadd

__all__ = ["HEAD_STRUCTURES", "RandSyntheticHead", "RandSyntheticHeadd", "mean_centres", "structure_lookup"]
