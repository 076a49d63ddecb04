"""The table of rules for whole volumes, classified or with a value to regress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import rules_classification as volumes
from . import rules_geometry as geometry
from . import rules_intensity as intensities
from . import rules_network as network
from . import rules_training as training
from .given_values import VOLUME_CHECKS
from .plan import Evidence, PlanRule, TrainingPlan, decide_all, fixed
from .segmentation import decide_pretrained

_NONE = type(None)
CLASSIFICATION_RULES = (
    PlanRule("device", str, network.decide_device),
    PlanRule("memory_gb", float, network.decide_memory_gb),
    PlanRule("pretrained", (str, _NONE), decide_pretrained),
    PlanRule("folds", int, training.decide_folds),
    PlanRule("modality", [str], intensities.decide_modality),
    PlanRule("intensity", [{"scheme": str}], intensities.decide_intensity),
    PlanRule("spacing_mm", [float], volumes.decide_volume_spacing),
    PlanRule("patch_size", [int], geometry.decide_patch_size),
    PlanRule("preset", str, network.decide_preset),
    PlanRule("embed_dim", int, network.decide_embed_dim),
    PlanRule("depth", int, network.decide_depth),
    PlanRule("num_heads", int, network.decide_num_heads),
    PlanRule("embed_layer", str, network.decide_embed_layer),
    PlanRule("head", str, volumes.decide_head),
    PlanRule("batch_size", int, volumes.decide_cases_a_step),
    PlanRule("amp", bool, network.decide_amp),
    PlanRule("window", [int], volumes.decide_volume),
    PlanRule("flip_axes", [int], geometry.decide_flip_axes),
    PlanRule("rotate_range", [float], geometry.decide_rotate_range),
    PlanRule("balanced", bool, volumes.decide_balanced),
    PlanRule("repeats", int, training.decide_repeats),
    PlanRule("cached_cases", int, training.decide_cached_cases),
    PlanRule("epochs", int, volumes.decide_epochs_of_volumes),
    PlanRule("val_interval", int, training.decide_val_interval),
    PlanRule("key_score", str, volumes.decide_key_score),
    PlanRule("learning_rate", float, volumes.decide_volume_learning_rate),
    PlanRule("weight_decay", float, fixed(0.3, "AdamW's; few cases are soon learnt by heart")),
    PlanRule("warmup_epochs", int, training.decide_warmup_epochs),
    PlanRule("frozen_epochs", int, training.decide_frozen_epochs),
    PlanRule("layer_decay", float, training.decide_layer_decay),
    PlanRule("clip_norm", (float, _NONE), training.decide_clip_norm),
    PlanRule("ema_decay", float, training.decide_ema_decay),
    PlanRule("lora_rank", int, fixed(0, "no low-rank adapters; above 0 needs peft and a pretrained encoder")),
    PlanRule("seed", int, fixed(0, "of all that is random")),
    PlanRule("num_workers", int, fixed(0, "processes that load data; cached cases need none")),
)


def plan_classification(evidence: Evidence, overrides: Mapping[str, Any] | None = None) -> TrainingPlan:
    """Plan the training of a classification or a regression.

    Args:
        evidence: what is known of the data and the machine.
        overrides: values by key, in place of what the rules would choose.

    Raises:
        UsageError: a key that no rule has, a value that cannot be, or data or memory that do not suffice.
    """
    return decide_all(CLASSIFICATION_RULES, evidence, overrides or {}, VOLUME_CHECKS)
