"""The rules that all plans share: what is known first, the network's size, and how its training ends."""

from __future__ import annotations

from . import rules_geometry as geometry
from . import rules_intensity as intensities
from . import rules_network as network
from . import rules_training as training
from .plan import PlanRule, fixed

NONE = type(None)
FIRST_RULES = (
    PlanRule("device", str, network.decide_device),
    PlanRule("memory_gb", float, network.decide_memory_gb),
    PlanRule("pretrained", (str, NONE), training.decide_pretrained),
    PlanRule("encoder_options", {}, training.decide_encoder_options),
    PlanRule("folds", int, training.decide_folds),
    PlanRule("modality", [str], intensities.decide_modality),
    PlanRule("intensity", [{"scheme": str}], intensities.decide_intensity),
    PlanRule("orientation", str, geometry.decide_orientation),
)
SIZE_RULES = (
    PlanRule("patch_size", [int], geometry.decide_patch_size),
    PlanRule("preset", str, network.decide_preset),
    PlanRule("embed_dim", int, network.decide_embed_dim),
    PlanRule("depth", int, network.decide_depth),
    PlanRule("num_heads", int, network.decide_num_heads),
    PlanRule("embed_layer", str, network.decide_embed_layer),
)
LAST_RULES = (
    PlanRule("warmup_epochs", int, training.decide_warmup_epochs),
    PlanRule("frozen_epochs", int, training.decide_frozen_epochs),
    PlanRule("layer_decay", float, training.decide_layer_decay),
    PlanRule("clip_norm", (float, NONE), training.decide_clip_norm),
    PlanRule("ema_decay", float, training.decide_ema_decay),
    PlanRule("lora_rank", int, fixed(0, "no low-rank adapters; above 0 needs peft and a pretrained encoder")),
    PlanRule("seed", int, fixed(0, "of all that is random")),
    PlanRule("num_workers", int, fixed(0, "processes that load data; cached cases need none")),
)
