"""The table of a segmentation's rules, in the order in which they are decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import rules_geometry as geometry
from . import rules_network as network
from . import rules_training as training
from .given_values import CHECKS
from .plan import Evidence, PlanRule, TrainingPlan, decide_all, fixed
from .shared_rules import FIRST_RULES, LAST_RULES, NONE, SIZE_RULES

SEGMENTATION_RULES = (
    *FIRST_RULES,
    PlanRule("spacing_mm", [float], geometry.decide_spacing_mm),
    *SIZE_RULES,
    PlanRule("decoder", str, network.decide_decoder),
    PlanRule("feature_size", int, network.decide_feature_size),
    PlanRule("image_levels", (int, NONE), network.decide_image_levels),
    PlanRule("batch_size", int, training.decide_batch_size),
    PlanRule("samples_per_case", int, training.decide_samples_per_case),
    PlanRule("amp", bool, network.decide_amp),
    PlanRule("window", [int], network.decide_window),
    PlanRule("overlap", float, fixed(0.5, "of neighbouring windows in prediction")),
    PlanRule("flip_axes", [int], geometry.decide_flip_axes),
    PlanRule("rotate_range", [float], geometry.decide_rotate_range),
    PlanRule("tta_degrees", [float], geometry.decide_tta_degrees),
    PlanRule("tta_scales", [float], fixed([0.92, 1.08], "enlargements; of `vit3d predict --tta full`")),
    PlanRule("class_ratios", [float], training.decide_class_ratios),
    PlanRule("loss", str, training.decide_loss),
    PlanRule("repeats", int, training.decide_repeats),
    PlanRule("cached_cases", int, training.decide_cached_cases),
    PlanRule("epochs", int, training.decide_epochs),
    PlanRule("val_interval", int, training.decide_val_interval),
    PlanRule("learning_rate", float, training.decide_learning_rate),
    PlanRule("weight_decay", float, fixed(0.01, "AdamW's")),
    *LAST_RULES,
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
