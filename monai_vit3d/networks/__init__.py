"""Networks: the backbone and what it becomes with a decoder."""

from .segmenter import TokenSegmenter
from .vit3d import VisionTransformer3D

__all__ = ["TokenSegmenter", "VisionTransformer3D"]
