"""The table of a segmentation's rules, in the order in which they are decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import rules_geometry as geometry
from . import rules_intensity as intensities
from . import rules_network as network
from . import rules_training as training
from .given_values import CHECKS
from .plan import Evidence, PlanRule, TrainingPlan, decide_all, fixed


def decide_pretrained(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Start from the encoder that was given."""
    if evidence.pretrained is None:
        return None, "trained from scratch"
    return str(evidence.pretrained), "given"


_NONE = type(None)
SEGMENTATION_RULES = (
    PlanRule("device", str, network.decide_device),
    PlanRule("memory_gb", float, network.decide_memory_gb),
    PlanRule("pretrained", (str, _NONE), decide_pretrained),
    PlanRule("folds", int, training.decide_folds),
    PlanRule("modality", [str], intensities.decide_modality),
    PlanRule("intensity", [{"scheme": str}], intensities.decide_intensity),
    PlanRule("spacing_mm", [float], geometry.decide_spacing_mm),
    PlanRule("patch_size", [int], geometry.decide_patch_size),
    PlanRule("preset", str, network.decide_preset),
    PlanRule("embed_dim", int, network.decide_embed_dim),
    PlanRule("depth", int, network.decide_depth),
    PlanRule("num_heads", int, network.decide_num_heads),
    PlanRule("embed_layer", str, network.decide_embed_layer),
    PlanRule("decoder", str, network.decide_decoder),
    PlanRule("feature_size", int, network.decide_feature_size),
    PlanRule("image_levels", (int, _NONE), network.decide_image_levels),
    PlanRule("batch_size", int, training.decide_batch_size),
    PlanRule("samples_per_case", int, training.decide_samples_per_case),
    PlanRule("amp", bool, network.decide_amp),
    PlanRule("window", [int], network.decide_window),
    PlanRule("overlap", float, fixed(0.5, "of neighbouring windows in prediction")),
    PlanRule("flip_axes", [int], geometry.decide_flip_axes),
    PlanRule("rotate_range", [float], geometry.decide_rotate_range),
    PlanRule("class_ratios", [float], training.decide_class_ratios),
    PlanRule("loss", str, training.decide_loss),
    PlanRule("repeats", int, training.decide_repeats),
    PlanRule("cached_cases", int, training.decide_cached_cases),
    PlanRule("epochs", int, training.decide_epochs),
    PlanRule("val_interval", int, training.decide_val_interval),
    PlanRule("learning_rate", float, training.decide_learning_rate),
    PlanRule("weight_decay", float, fixed(0.01, "AdamW's")),
    PlanRule("warmup_epochs", int, training.decide_warmup_epochs),
    PlanRule("frozen_epochs", int, training.decide_frozen_epochs),
    PlanRule("layer_decay", float, training.decide_layer_decay),
    PlanRule("clip_norm", (float, _NONE), training.decide_clip_norm),
    PlanRule("ema_decay", float, training.decide_ema_decay),
    PlanRule("lora_rank", int, fixed(0, "no low-rank adapters; above 0 needs peft and a pretrained encoder")),
    PlanRule("seed", int, fixed(0, "of all that is random")),
    PlanRule("num_workers", int, fixed(0, "processes that load data; cached cases need none")),
)


def plan_segmentation(evidence: Evidence, overrides: Mapping[str, Any] | None = None) -> TrainingPlan:
    """Plan the training of a segmentation.

    Args:
        evidence: what is known of the data and the machine.
        overrides: values by key, in place of what the rules would choose.

    Raises:
        UsageError: a key that no rule has, a value that cannot be, or data or memory that do not suffice.
    """
    return decide_all(SEGMENTATION_RULES, evidence, overrides or {}, CHECKS)
