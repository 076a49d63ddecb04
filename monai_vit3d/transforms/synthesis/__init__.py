"""Synthetic images from label maps, for networks that meet any contrast and pose."""

from .head_atlas import mean_atlas, save_atlas
from .head_labels import BRAIN_STRUCTURES, HEAD_STRUCTURES, structure_lookup
from .head_template import mean_centres, structure_centres
from .synthetic_head import RandSyntheticHead, RandSyntheticHeadd
from .upright_head import UprightHeadd

__all__ = [
    "BRAIN_STRUCTURES",
    "HEAD_STRUCTURES",
    "RandSyntheticHead",
    "RandSyntheticHeadd",
    "UprightHeadd",
    "mean_atlas",
    "mean_centres",
    "save_atlas",
    "structure_centres",
    "structure_lookup",
]
