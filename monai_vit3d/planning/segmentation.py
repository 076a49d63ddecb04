"""The table of a segmentation's rules, in the order in which they are decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import rules_geometry as geometry
from . import rules_intensity as intensities
from . import rules_network as network
from . import rules_training as training
from .plan import Evidence, PlanRule


def _fixed(value: Any, reason: str) -> Any:
    return lambda evidence, plan: (value, reason)


def _pretrained(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    if evidence.pretrained is None:
        return None, "trained from scratch; pretrained= names an encoder to start from"
    return str(evidence.pretrained), "given"


_NONE = type(None)
SEGMENTATION_RULES = (
    PlanRule("device", str, network.choose_device),
    PlanRule("memory_gb", float, network.choose_memory_gb),
    PlanRule("pretrained", (str, _NONE), _pretrained),
    PlanRule("folds", int, training.choose_folds),
    PlanRule("modality", [str], intensities.choose_modality),
    PlanRule("intensity", [{"scheme": str}], intensities.choose_intensity),
    PlanRule("spacing_mm", [float], geometry.choose_spacing_mm),
    PlanRule("patch_size", [int], geometry.choose_patch_size),
    PlanRule("preset", str, network.choose_preset),
    PlanRule("embed_dim", int, network.choose_embed_dim),
    PlanRule("depth", int, network.choose_depth),
    PlanRule("num_heads", int, network.choose_num_heads),
    PlanRule("embed_layer", str, network.choose_embed_layer),
    PlanRule("decoder", str, network.choose_decoder),
    PlanRule("feature_size", int, network.choose_feature_size),
    PlanRule("image_levels", (int, _NONE), network.choose_image_levels),
    PlanRule("batch_size", int, training.choose_batch_size),
    PlanRule("samples_per_case", int, training.choose_samples_per_case),
    PlanRule("amp", bool, network.choose_amp),
    PlanRule("window", [int], network.choose_window),
    PlanRule("overlap", float, _fixed(0.5, "of neighbouring windows in prediction")),
    PlanRule("flip_axes", [int], geometry.choose_flip_axes),
    PlanRule("rotate_range", [float], geometry.choose_rotate_range),
    PlanRule("class_ratios", [float], training.choose_class_ratios),
    PlanRule("loss", str, training.choose_loss),
    PlanRule("repeats", int, training.choose_repeats),
    PlanRule("cached_cases", int, training.choose_cached_cases),
    PlanRule("epochs", int, training.choose_epochs),
    PlanRule("val_interval", int, training.choose_val_interval),
    PlanRule("learning_rate", float, training.choose_learning_rate),
    PlanRule("weight_decay", float, _fixed(0.01, "AdamW's")),
    PlanRule("warmup_epochs", int, training.choose_warmup_epochs),
    PlanRule("frozen_epochs", int, training.choose_frozen_epochs),
    PlanRule("layer_decay", float, training.choose_layer_decay),
    PlanRule("clip_norm", (float, _NONE), training.choose_clip_norm),
    PlanRule("ema_decay", float, training.choose_ema_decay),
    PlanRule("lora_rank", int, _fixed(0, "no low-rank adapters; above 0 needs peft and a pretrained encoder")),
    PlanRule("seed", int, _fixed(0, "of all that is random")),
    PlanRule("num_workers", int, _fixed(0, "processes that load data; cached cases need none")),
)
