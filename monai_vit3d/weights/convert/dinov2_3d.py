"""DINOv2 in 3D, as 3DINO has it: timm's layout, registers without positions, and a mask's token beside it."""

from __future__ import annotations

from torch import Tensor, nn

from .family import BackboneOptions, KeyLayout, Patch, State, has_timms_layout
from .key_table import KeyTable
from .our_layout import eps, learned_positions, shown_options
from .shapes import POS


def without_class_position(named: dict[str, Tensor], origins: dict[str, str]) -> None:
    """Add the class token's position to it where there are registers, which come after positions were added.

    Args:
        named: tensors under our names but for ``register_tokens``; changed in place.
        origins: where they come from; changed in place.
    """
    if "register_tokens" not in named:
        return
    origins["reg_token"] = origins.pop("register_tokens", "from register_tokens")
    named["reg_token"] = named.pop("register_tokens")
    if POS in named and "cls_token" in named:
        names = [origins.get(key, f"from {key}").removeprefix("from ") for key in ("cls_token", POS)]
        named["cls_token"] = named["cls_token"] + named[POS][:, :1]
        named[POS] = named[POS][:, 1:]
        origins["cls_token"], origins[POS] = f"from {' and '.join(names)}", f"from {names[1]}"


def _adjust(named: dict[str, Tensor], origins: dict[str, str]) -> None:
    without_class_position(named, origins)
    for key in [key for key in named if ".mlp.w12." in key or ".mlp.w3." in key]:
        name = key.replace(".w12.", ".fc1.").replace(".w3.", ".fc2.")
        named[name], origins[name] = named.pop(key), f"from {key}"


def _unadjust(state: dict[str, Tensor]) -> None:
    """Give registers and the gated MLP their names; a class token that has no position gets one of zeros."""
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state[POS] = nn.functional.pad(state[POS], [0, 0, 1, 0])
    if len(state["blocks.0.mlp.fc1.weight"]) == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
        for key in [key for key in state if ".mlp.fc" in key]:
            state[key.replace(".fc1.", ".w12.").replace(".fc2.", ".w3.")] = state.pop(key)
    state["mask_token"] = state["cls_token"].new_zeros(1, state["cls_token"].shape[2])


def dinov2_prefix(options: dict[str, int]) -> int:
    """Return how many positions belong to prefix tokens: the class token's, unless there are registers."""
    return 0 if options["reg_tokens"] else int(options["class_token"])


def _options(state: State, theirs: State, patch: Patch | None) -> BackboneOptions:
    options = {**shown_options(state, "DINOv2"), **eps(1e-6)}
    positions, assumed = learned_positions(state, options, dinov2_prefix(options))
    return {**options, **positions}, assumed


def _matches(state: State) -> bool:
    mask = state.get("mask_token")
    signs = "register_tokens" in state or (mask is not None and mask.dim() == 2)
    return has_timms_layout(state, 3) and signs and "blocks.0.ls1.gamma" in state


DINOV2_3D = KeyLayout("dinov2_3d", _matches, KeyTable(), _options, adjust=_adjust, unadjust=_unadjust).family()
