"""Primus (Wald et al. 2025, arXiv:2503.01835): V1, with registers, V2 and V3; OpenMind's, nnU-Net's and COLIPRI's.

The blocks are timm's EVA blocks: SwiGLU with an inner norm, an inner norm of the attention, LayerScale as ``gamma``,
keys without a bias; rotary positions in patches, of the grid of the training. V2 and V3 have a residual stem.

No tensor shows the heads (of all four sizes 66 or 72 channels wide: M has 12) nor, without learned positions (COLIPRI),
that grid: it is the one of ``img_size`` unless ``grid`` is passed, which other sizes need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers import ResidualStem3D, SkipStem3D

from .family import BackboneOptions, KeyLayout, Patch, State
from .key_table import Joined, KeyTable, apart
from .our_layout import eps, learned_positions, shown_options
from .rotary_ladders import patch_rotary

_TABLE = KeyTable(
    outside=(
        ("down_projection.proj.", "patch_embed.proj."),
        ("down_projection.final_proj.", "patch_embed.proj."),
        ("down_projection.proj_to_tokens.", "patch_embed.skips."),
        ("register_tokens", "reg_token"),
        ("eva.pos_embed", "pos_embed"),
        ("eva.norm.", "norm."),
    ),
    block="eva.blocks.",
    inside=(("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")),
    # timm's EVA has projections of its own, or one with two biases
    joined=(*apart(bias_of_keys=False), Joined("attn.qkv.bias", ("attn.q_bias", None, "attn.v_bias"), (1, 1, 1))),
)
_STAGE = re.compile(r"down_projection\.(?:stem|stages\.(\d+))\.blocks\.0\.(.+)$")
_COPY = re.compile(r"(.+)\.all_modules\.(\d)\.(weight|bias)$")
_IN_STAGE = (
    (r"conv([12])\.conv\.", r"conv\1."),
    (r"conv([12])\.norm\.", r"norm\1."),
    (r"skip\.\d\.conv\.", "skip."),
    (r"skip\.\d\.norm\.", "skip_norm."),
)
_SCALE = re.compile(r"down_projection\.scale_proj_to_tokens\.(\d+)$")
_SCALES = "patch_embed.skip_scales"


def _matches(state: State) -> bool:
    stem = any(f"down_projection.{key}.weight" in state for key in ("proj", "final_proj"))
    return stem and any(key.startswith("eva.blocks.0.") for key in state)


def _check(state: State) -> None:
    """Refuse layers of a stem that are there twice, and differ."""
    for key, value in state.items():
        copy = _COPY.match(key)
        if copy is None:
            continue
        original = f"{copy[1]}.{'conv' if copy[2] == '0' else 'norm'}.{copy[3]}"
        if original not in state or not torch.equal(state[original], value):
            raise WeightsError(f"{key} is no copy of {original}, as it is in Primus.")


def _adjust(named: dict[str, Tensor], origins: dict[str, str]) -> None:
    """Give the stages of a residual stem our names."""
    for key in list(named):
        stage = _STAGE.match(key)
        if stage is None:
            continue
        layer = stage[2]
        for theirs, ours in _IN_STAGE:
            layer = re.sub(f"^{theirs}", ours, layer)
        name = f"patch_embed.stages.{0 if stage[1] is None else int(stage[1]) + 1}.{layer}"
        named[name], origins[name] = named.pop(key), f"from {key}"
    scales = sorted((key for key in named if _SCALE.match(key)), key=lambda key: int(key.rsplit(".", 1)[1]))
    if scales:
        named[_SCALES] = torch.stack([named.pop(key).reshape(()) for key in scales])
        origins[_SCALES] = f"from {' and '.join(scales)}"


def _unadjust(state: dict[str, Tensor]) -> None:
    """Give the stages of a residual stem their names, and the copies that Primus holds of them."""
    for key in [key for key in state if key.startswith("patch_embed.stages.")]:
        number, layer, kind = key.split(".")[2:]
        place = "stem" if number == "0" else f"stages.{int(number) - 1}"
        inner = layer.replace("norm", "conv") if layer[-1].isdigit() else f"skip.{int(number != '0')}"
        at = f"down_projection.{place}.blocks.0.{inner}"
        value, is_norm = state.pop(key), "norm" in layer
        state[f"{at}.{'norm' if is_norm else 'conv'}.{kind}"] = value
        state[f"{at}.all_modules.{int(is_norm)}.{kind}"] = value
    if any(key.startswith("down_projection.stem.") for key in state):
        for kind in ("weight", "bias"):
            state[f"down_projection.final_proj.{kind}"] = state.pop(f"patch_embed.proj.{kind}")
    for i, scale in enumerate(state.pop(_SCALES, ())):
        state[f"down_projection.scale_proj_to_tokens.{i}"] = scale


def _options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "Primus"), **_stem(state), **eps(1e-5)}
    positions, assumed = learned_positions(state, options, options["reg_tokens"])
    return {**options, **positions}, assumed


def _stem(state: State) -> dict[str, Any]:
    """Return the keywords of a residual stem, which halves each axis in every stage but the first."""
    kernels = [state[key] for key in _numbered(state, "patch_embed.stages.{}.conv1.weight")]
    if not kernels:
        return {}
    widths, kind = tuple(len(kernel) for kernel in kernels), SkipStem3D if _SCALES in state else ResidualStem3D
    return {
        "in_chans": int(kernels[0].shape[1]),
        "patch_size": (2 ** (len(kernels) - 1),) * 3,
        "embed_layer": kind if widths == kind.base_widths else partial(kind, widths=widths),
    }


def _numbered(state: State, name: str) -> list[str]:
    count = next(i for i in range(len(state) + 1) if name.format(i) not in state)
    return [name.format(i) for i in range(count)]


def _rope(state: State, options: Mapping[str, Any], grid: Patch) -> Any:
    return patch_rotary(options, grid)


PRIMUS = KeyLayout(
    "primus",
    _matches,
    _TABLE,
    _options,
    left_out=r"mask_token$|up_projection\.|eva\.rope\.|.*\.all_modules\.",
    adjust=_adjust,
    rope=_rope,
    unadjust=_unadjust,
    check=_check,
).family()
