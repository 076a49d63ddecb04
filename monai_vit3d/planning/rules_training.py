"""Rules for the training: folds, batches, sampling, loss, length and learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_vit3d.data.errors import UsageError
from monai_vit3d.memory_limits import available_bytes

from .plan import Evidence
from .rules_geometry import resampled_shape

MOST_FOLDS = 5
WINDOWS_A_STEP = 2  # a step
STEPS_AN_EPOCH = 50  # at least, so that little is spent on checkpoints
STEPS = {"cpu": 4000, "cuda": 25000}
FEWEST_STEPS = 1000
# voxels a step of the shipped hippocampus bundle, whose 3900 steps take 20 minutes on a CPU; larger ones get fewer
VOXELS_A_STEP = {"cpu": 2 * 32 * 48 * 32, "cuda": 2 * 128**3}
RARE = 1e-3  # of a window's voxels, below which a class is rare
VALIDATIONS = 10


def decide_pretrained(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Start from the encoder that was given."""
    if evidence.pretrained is None:
        return None, "trained from scratch"
    return evidence.pretrained, "given"


def decide_encoder_options(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take what is known of the encoder beside its tensors."""
    if evidence.pretrained is None:
        return {}, "nothing is pretrained"
    return dict(evidence.encoder_options), "the file shows all others"


def decide_folds(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take the data's folds, else 5 by subject, fewer where there are fewer subjects."""
    subjects = evidence.subjects
    if subjects < 2:
        raise UsageError(f"{subjects} subject with labels; expected 2 or more: one validates. Add cases.")
    if evidence.folds:
        return evidence.folds, "the data's own"
    if subjects < MOST_FOLDS:
        return subjects, f"one for each of {subjects} subjects"
    return MOST_FOLDS, f"by subject, of {subjects}"


def require_folds(evidence: Evidence, count: int) -> None:
    """Refuse a number of folds that the data cannot have.

    Raises:
        UsageError: fewer than 2, more than subjects, or another than the data's own.
    """
    most = evidence.folds or evidence.subjects
    if evidence.folds and count != evidence.folds:
        raise UsageError(f"folds={count}; the data have {evidence.folds} of their own. Leave folds out.")
    if not 2 <= count <= most:
        raise UsageError(f"folds={count}; {evidence.subjects} subjects are there: expected 2 to {most}.")


def decide_batch_size(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take two cases a step, where a fold has two to train on."""
    require_folds(evidence, plan["folds"])
    return max(1, min(WINDOWS_A_STEP, training_cases(evidence, plan))), "cases a step"


def decide_samples_per_case(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take as many windows a case as make two a step."""
    return max(1, WINDOWS_A_STEP // plan["batch_size"]), "windows of each case in a step"


def training_cases(evidence: Evidence, plan: Mapping[str, Any]) -> int:
    """Count the cases that train a fold, of folds of one size."""
    return math.floor(int(evidence.fingerprint["cases"]) * (plan["folds"] - 1) / plan["folds"])


def steps_an_epoch(evidence: Evidence, plan: Mapping[str, Any]) -> int:
    """Count the steps of an epoch; the last batch is dropped if it is not full."""
    return max(1, training_cases(evidence, plan) * plan["repeats"] // plan["batch_size"])


def decide_repeats(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Draw each case so often that an epoch has 50 steps."""
    cases = training_cases(evidence, plan)
    count = max(1, math.ceil(STEPS_AN_EPOCH * plan["batch_size"] / max(1, cases)))
    return count, f"times that an epoch draws each of about {cases} cases, for {STEPS_AN_EPOCH} steps or more"


def decide_cached_cases(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Keep as many preprocessed cases in memory as half of what this process may take holds."""
    per_voxel = 4 * (len(evidence.fingerprint["channels"]) + 1)
    case = per_voxel * math.prod(resampled_shape(evidence, plan))
    most = int(0.5 * available_bytes() / case)
    cases = int(evidence.fingerprint["cases"])
    if most >= cases:
        return cases, "all preprocessed cases stay in memory"
    return most, "preprocessed cases that half of the free memory holds; others are read each time"


def decide_class_ratios(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Centre a third of the windows on background, and the others on all classes equally often."""
    classes = len(evidence.fingerprint["classes"])
    return [classes / 2, *[1.0] * classes], "a third of the windows on background, the others on each class alike"


def decide_loss(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take Dice and cross-entropy; Dice and focal where a class is rare in a window."""
    voxel_ml = math.prod(plan["spacing_mm"]) / 1000
    classes = [facts for facts in evidence.fingerprint["classes"].values() if facts["cases"]]
    voxels = {str(facts["name"]): facts["volume_ml"] / voxel_ml for facts in classes}
    name = min(voxels, key=lambda name: voxels[name])
    share = voxels[name] / math.prod(plan["window"])
    if share < RARE:
        return "DiceFocalLoss", f"class {name!r} fills {share:.1g} of a window: easy voxels count less"
    return "DiceCELoss", "Dice and cross-entropy; no class is rare in a window"


def decide_epochs(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take as many steps as the device does in a sensible time."""
    windows = plan["batch_size"] * plan["samples_per_case"]
    voxels = windows * math.prod(plan["window"])
    steps = STEPS[plan["device"]] * min(1.0, VOXELS_A_STEP[plan["device"]] / voxels)
    an_epoch = steps_an_epoch(evidence, plan)
    count = max(1, round(max(steps, FEWEST_STEPS) / an_epoch))
    return count, f"about {count * an_epoch} steps of {windows} windows"


def decide_learning_rate(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take 1e-3 for narrow networks, less for wide and for pretrained ones."""
    if evidence.pretrained:
        return 3e-4, "of the decoder; the encoder's falls by layer_decay"
    return (1e-3, "of a narrow network") if plan["embed_dim"] <= 256 else (3e-4, "of a wide network")


def decide_warmup_epochs(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Warm up over a twentieth of the training."""
    return max(1, round(plan["epochs"] / 20)), "the learning rate rises, then falls as a cosine"


def decide_frozen_epochs(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Train the decoder of a pretrained encoder first, alone."""
    if evidence.pretrained:
        return plan["warmup_epochs"], "the new decoder learns first, the pretrained encoder rests"
    return 0, "nothing is pretrained"


def decide_layer_decay(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Let the early layers of a pretrained encoder change least."""
    if evidence.pretrained:
        return 0.75, "early layers of the pretrained encoder change least"
    return 1.0, "all layers learn alike"


def decide_clip_norm(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Clip gradients: closely where an encoder is pretrained."""
    if evidence.pretrained:
        return 1.0, "keeps the pretrained encoder from being thrown off"
    return 12.0, "stops a gradient that explodes, and no other"


def decide_ema_decay(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Average the weights over about a tenth of the training."""
    steps = plan["epochs"] * steps_an_epoch(evidence, plan)
    return round(min(0.999, max(0.9, 1 - 8 / steps)), 4), "the moving average of the weights is what is validated"


def decide_val_interval(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Validate about ten times."""
    return max(1, plan["epochs"] // VALIDATIONS), f"epochs; about {VALIDATIONS} validations"
