"""Networks: the backbone, its named sizes, and what it becomes with a decoder or a head."""

from .classifier import TokenClassifier
from .heads import HEADS
from .layer_decay import layer_decay_groups
from .presets import PRESETS, create_model
from .segmenter import TokenSegmenter
from .tasks import encode_target, probabilities, task_loss
from .vit3d import VisionTransformer3D

__all__ = [
    "HEADS",
    "PRESETS",
    "TokenClassifier",
    "TokenSegmenter",
    "VisionTransformer3D",
    "create_model",
    "encode_target",
    "layer_decay_groups",
    "probabilities",
    "task_loss",
]
