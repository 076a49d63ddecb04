"""The table of rules for whole volumes, classified or with a value to regress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import rules_classification as volumes
from . import rules_geometry as geometry
from . import rules_network as network
from . import rules_training as training
from .given_values import VOLUME_CHECKS
from .plan import Evidence, PlanRule, TrainingPlan, decide_all, fixed
from .shared_rules import FIRST_RULES, LAST_RULES, SIZE_RULES

CLASSIFICATION_RULES = (
    *FIRST_RULES,
    PlanRule("spacing_mm", [float], volumes.decide_volume_spacing),
    *SIZE_RULES,
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
    *LAST_RULES,
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
