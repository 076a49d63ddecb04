"""Check values that are given in place of a rule's: what a training could not use is refused while planning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from monai_vit3d.data.errors import UsageError

from .fingerprint import WORLD_AXES
from .plan import Check, Evidence
from .rules_classification import volume_step_bytes
from .rules_intensity import MODALITIES
from .rules_network import GIB, LARGEST_WINDOW, step_bytes
from .rules_training import require_folds


def _number(least: float, below: float = math.inf) -> Check:
    text = f"{least:g} or more" + (f", and less than {below:g}," if below < math.inf else "")
    return lambda value, *_: "" if least <= value < below else f"{text} is expected"


def _above_zero(most: float = math.inf) -> Check:
    text = "a number above 0" + (f" and up to {most:g}" if most < math.inf else "")
    return lambda value, *_: "" if 0 < value <= most else f"{text} is expected"


def _or_none(check: Check) -> Check:
    return lambda value, *more: "" if value is None else check(value, *more)


def _three(least: float, below: float = math.inf) -> Check:
    def check(value: Any, *_: Any) -> str:
        if len(value) != 3:
            return "3 numbers are expected, one for each axis"
        if max(value) >= below:
            return f"numbers below {below:g} are expected"
        return "" if min(value) >= least else f"numbers of {least:g} or more are expected"

    return check


def _one_of(names: Callable[[], list[str]]) -> Check:
    return lambda value, *_: "" if value in names() else f"unknown; expected one of {', '.join(names())}"


def _decoders() -> list[str]:
    from monai_vit3d.decoders import DECODERS

    return sorted(DECODERS)


def _check_decoder(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    from monai_vit3d.decoders import decoders_for

    usable = decoders_for(plan["depth"], plan["patch_size"])
    if value not in _decoders() or not usable:
        return _one_of(_decoders)(value, evidence, plan)
    blocks = f"{plan['depth']} blocks and patch_size={plan['patch_size']}"
    return "" if value in usable else f"it reads more than the network's {blocks} have; expected {', '.join(usable)}"


def _embed_layers() -> list[str]:
    from monai_vit3d.layers import EMBED_LAYERS

    return sorted(EMBED_LAYERS)


def _presets() -> list[str]:
    from monai_vit3d.networks.presets import PRESETS

    return list(PRESETS)


def _heads() -> list[str]:
    from monai_vit3d.networks.heads import HEADS

    return sorted(HEADS)


def _check_orientation(value: Any, *_: Any) -> str:
    is_whole = sorted(axis for letter in value for axis in WORLD_AXES if letter in axis) == sorted(WORLD_AXES)
    return (
        ""
        if is_whole and len(value) == len(WORLD_AXES)
        else "one of R and L, A and P, S and I each, as RAS, is expected"
    )


def _check_score(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    usable = ("auc", "accuracy") if "classes" in evidence.fingerprint else ("r2",)
    return "" if value in usable else f"one of {', '.join(usable)} is expected"


def _check_modality(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    unknown = [name for name in value if name not in MODALITIES]
    return f"{', '.join(MODALITIES)} are expected" if unknown else _check_channels(value, evidence, plan)


def _check_channels(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    channels = len(evidence.fingerprint["channels"])
    return "" if len(value) == channels else f"{len(value)} entries; one for each of {channels} channels is expected"


def _check_intensity(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    from monai_vit3d.transforms import NormalizeChannelsd

    try:
        NormalizeChannelsd("image", value)
    except UsageError as error:
        return str(error).rstrip(".")
    return _check_channels(value, evidence, plan)


def _check_ratios(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    classes = len(evidence.fingerprint["classes"]) + 1
    if len(value) != classes:
        return f"{len(value)} entries; one for each of {classes} classes is expected"
    return "" if min(value) >= 0 < sum(value) else "numbers of 0 or more are expected, not all 0"


def _check_heads(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    fits = value >= 1 and plan["embed_dim"] % value == 0
    return "" if fits else f"a divisor of embed_dim={plan['embed_dim']} is expected"


def _of_encoder(check: Check) -> Check:
    def checked(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
        return (
            "the pretrained encoder's is expected; leave it out" if evidence.encoder else check(value, evidence, plan)
        )

    return checked


def _check_patch(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    from monai_vit3d.weights.backbone import keeps_patch

    own = evidence.encoder.get("patch_size")
    if keeps_patch(evidence.encoder) and list(value) != own:
        return f"{own} is expected, of the pretrained encoder's convolutional stem; leave it out"
    return _three(1)(value, evidence, plan)


def _check_scales(value: Any, evidence: Evidence, plan: Mapping[str, Any]) -> str:
    return "" if all(0 < factor < math.inf for factor in value) else "factors above 0 are expected"


def _check_flips(value: Any, *_: Any) -> str:
    return "" if set(value) <= {0, 1, 2} else "axes 0, 1 and 2 are expected"


def _check_loss(value: Any, *_: Any) -> str:
    import monai.losses

    usable = ("DiceCELoss", "DiceFocalLoss", "GeneralizedDiceFocalLoss", "DiceLoss", "GeneralizedDiceLoss")
    return "" if value in usable and hasattr(monai.losses, value) else f"one of {', '.join(usable)} is expected"


def _check_folds(value: Any, evidence: Evidence, *_: Any) -> str:
    require_folds(evidence, value)
    return ""


def _window(step_bytes: Callable[[Evidence, Mapping[str, Any], list[int]], int]) -> Check:
    return lambda value, evidence, plan: (
        _window_fault(value, plan) or _memory_fault(step_bytes(evidence, plan, value) / GIB, plan["memory_gb"])
    )


def _memory_fault(needed: float, limit: float) -> str:
    if needed <= limit:
        return ""
    return f"a step needs about {needed:.2g} GB, memory is {limit:g} GB; a smaller one is expected"


def _window_fault(value: Any, plan: Mapping[str, Any]) -> str:
    patch = plan["patch_size"]
    if len(value) != 3 or min(value) < 1:
        return "3 numbers are expected, one for each axis"
    if any(n % p for n, p in zip(value, patch)):
        near = [p * max(1, round(n / p)) for n, p in zip(value, patch)]
        return f"multiples of patch_size={patch} are expected, such as {near}"
    if list(value) == patch:  # its only token could not be normed
        return f"more than one patch of {patch} is expected"
    return ""


CHECKS: dict[str, Check] = {
    "device": _one_of(lambda: list(LARGEST_WINDOW)),
    "memory_gb": _above_zero(),
    "folds": _check_folds,
    "modality": _check_modality,
    "intensity": _check_intensity,
    "orientation": _check_orientation,
    "spacing_mm": _three(1e-3),
    "patch_size": _check_patch,
    "preset": _of_encoder(_one_of(_presets)),
    "embed_dim": _of_encoder(_number(1)),
    "depth": _of_encoder(_number(1)),
    "num_heads": _of_encoder(_check_heads),
    "embed_layer": _of_encoder(_one_of(_embed_layers)),
    "decoder": _check_decoder,
    "feature_size": _number(1),
    "image_levels": _or_none(_number(1)),
    "batch_size": _number(1),
    "samples_per_case": _number(1),
    "window": _window(step_bytes),
    "overlap": _number(0, 1),
    "flip_axes": _check_flips,
    "rotate_range": _three(0),
    "tta_degrees": _three(0, below=90),
    "tta_scales": _check_scales,
    "class_ratios": _check_ratios,
    "loss": _check_loss,
    "repeats": _number(1),
    "cached_cases": _number(0),
    "epochs": _number(1),
    "val_interval": _number(1),
    "learning_rate": _above_zero(),
    "weight_decay": _number(0),
    "warmup_epochs": _number(0),
    "frozen_epochs": _number(0),
    "layer_decay": _above_zero(1),
    "clip_norm": _or_none(_above_zero()),
    "ema_decay": _number(0, 1),
    "lora_rank": _number(0),
    "seed": _number(0),
    "num_workers": _number(0),
}
# of the keys that plans for whole volumes have besides, or otherwise
VOLUME_CHECKS: dict[str, Check] = {
    **CHECKS,
    "window": _window(volume_step_bytes),
    "head": _one_of(_heads),
    "key_score": _check_score,
}
