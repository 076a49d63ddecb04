"""Networks: the backbone, its named sizes, and what it becomes with a decoder or a head."""

from typing import Any

from monai_vit3d.deprecated import find_renamed

from .classifier import TokenClassifier
from .fold_ensemble import FoldEnsemble
from .heads import HEADS
from .layer_decay import layer_decay_groups
from .lora import LoraSettings, MergedState, apply_lora, freeze, merge_lora
from .model_args import build_network, model_args
from .presets import PRESETS, create_preset
from .segmenter import TokenSegmenter
from .structure_loss import StructureLoss
from .task_losses import EqualDrawLoss, encode_target, probabilities, task_loss
from .vit3d import VisionTransformer3D

__all__ = [
    "EqualDrawLoss",
    "FoldEnsemble",
    "HEADS",
    "LoraSettings",
    "MergedState",
    "PRESETS",
    "StructureLoss",
    "TokenClassifier",
    "TokenSegmenter",
    "VisionTransformer3D",
    "apply_lora",
    "build_network",
    "create_preset",
    "encode_target",
    "freeze",
    "layer_decay_groups",
    "merge_lora",
    "model_args",
    "probabilities",
    "task_loss",
]


def __getattr__(name: str) -> Any:
    return find_renamed(__name__, name)
