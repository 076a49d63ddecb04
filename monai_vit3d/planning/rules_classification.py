"""Rules that whole volumes have of their own: what of them the network sees, its head, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_vit3d.data.errors import UsageError

from .plan import Evidence
from .rules_geometry import decide_spacing_mm, resampled_shape
from .rules_network import GIB
from .rules_training import steps_an_epoch, training_cases

# voxels that the network sees at once
LARGEST_VOLUME = {"cpu": 64**3, "cuda": 128**3}
CASES_A_STEP = 8
STEPS_OF_VOLUMES = {"cpu": 1500, "cuda": 6000}


def decide_volume_spacing(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take the median spacing, coarser where a whole case would be too large."""
    spacing, reason = decide_spacing_mm(evidence, plan)
    voxels = math.prod(resampled_shape(evidence, {**plan, "spacing_mm": spacing}, "90"))
    factor = max(1.0, (voxels / LARGEST_VOLUME[plan["device"]]) ** (1 / 3))
    if factor == 1.0:
        return spacing, reason
    coarse = [float(f"{mm * factor:.3g}") for mm in spacing]
    return coarse, f"{factor:.2g} times the median, so that the network sees a whole case"


def decide_volume(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Cover nine of ten cases; larger ones are cropped, smaller ones padded."""
    shape = resampled_shape(evidence, plan, "90")
    sizes = [p * max(2, math.ceil(n / p)) for n, p in zip(shape, plan["patch_size"])]
    needed = volume_step_bytes(evidence, plan, sizes) / GIB
    if needed > plan["memory_gb"]:
        raise UsageError(
            f"memory={plan['memory_gb']:g}GB: a step needs {needed:.2g} GB. Give more memory, or a smaller batch_size "
            "or a coarser spacing_mm."
        )
    return sizes, f"nine of ten cases are no larger; a step needs about {needed:.2g} GB"


def volume_step_bytes(evidence: Evidence, plan: Mapping[str, Any], sizes: list[int]) -> int:
    """Estimate the memory of a training step with volumes of a size."""
    from .memory import build_classifier, training_bytes

    channels, outputs = len(evidence.fingerprint["channels"]), len(evidence.fingerprint.get("classes", [1]))
    network = build_classifier(plan, sizes, channels, outputs, evidence.encoder)
    return training_bytes(network, (plan["batch_size"], channels, *sizes), 0, plan["amp"])


def decide_cases_a_step(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take eight cases a step, where a fold has as many."""
    return max(1, min(CASES_A_STEP, training_cases(evidence, plan))), "cases a step"


def decide_head(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take a linear head."""
    return "linear", "over the tokens of four blocks; few data train it"


def decide_balanced(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Draw every class equally often."""
    if "classes" not in evidence.fingerprint:
        return False, "all values are drawn as they come"
    return True, "every class is drawn equally often"


def decide_key_score(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Choose the epoch by AUC where each fold has every class."""
    if "classes" not in evidence.fingerprint:
        return "r2", "chooses the epoch: the share of the variance that is explained"
    fewest = min(facts["cases"] for facts in evidence.fingerprint["classes"].values())
    if fewest >= plan["folds"]:
        return "auc", "chooses the epoch"
    return "accuracy", "chooses the epoch: AUC needs a case of each class in each fold"


def decide_epochs_of_volumes(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take as many steps as small data sets need."""
    steps = steps_an_epoch(evidence, plan)
    count = max(1, round(STEPS_OF_VOLUMES[plan["device"]] / steps))
    return count, f"about {count * steps} steps of {plan['batch_size']} cases"


def decide_volume_learning_rate(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take what the shipped classification bundle has, half of it for a pretrained encoder."""
    return (1e-4, "of the head; the encoder's falls by layer_decay") if evidence.pretrained else (2e-4, "of all layers")
