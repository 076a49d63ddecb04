"""Networks: the backbone, its named sizes, and what it becomes with a decoder."""

from .presets import PRESETS, create_model
from .segmenter import TokenSegmenter
from .vit3d import VisionTransformer3D

__all__ = ["PRESETS", "TokenSegmenter", "VisionTransformer3D", "create_model"]
