"""Kinds of checkpoints, a row each: how one is recognised, what its tensors show, and its names under ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from monai_vit3d.data.errors import WeightsError

from . import monai_keys
from .nidl import nidl_options
from .shapes import KERNEL

State = Mapping[str, Tensor]
Patch = tuple[int, int, int]
BackboneOptions = tuple[dict[str, Any], tuple[str, ...]]


def _same_names(state: State, patch: Patch) -> tuple[dict[str, Tensor], dict[str, str]]:
    return dict(state), {}


def _all_of_it(state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    return dict(state), ()


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Attributes:
        name: for ``family=`` and reports.
        matches: whether a state dict is of this family, by its keys and shapes.
        encoder: the tensors of the encoder and its head, and the keys of everything else.
        options: the keywords of :class:`VisionTransformer3D` that these tensors show (given the patch, where no
            tensor shows it), and which of them are assumed.
        to_our_keys: these tensors under the keys of :class:`VisionTransformer3D`, and where renamed ones come from.
        refusal: why a checkpoint of this family cannot be loaded; "" if it can.
    """

    name: str
    matches: Callable[[State], bool]
    encoder: Callable[[State], tuple[dict[str, Tensor], tuple[str, ...]]] = _all_of_it
    options: Callable[[State, Patch | None], BackboneOptions] = lambda state, patch: ({}, ())
    to_our_keys: Callable[[State, Patch], tuple[dict[str, Tensor], dict[str, str]]] = _same_names
    refusal: str = ""


def _monai(name: str) -> Family:
    return Family(
        name,
        partial(monai_keys.is_of, family=name),
        partial(monai_keys.split_encoder, family=name),
        lambda state, patch: monai_keys.encoder_options(state, name, patch),
        monai_keys.to_our_keys,
    )


def _is_primus(state: State) -> bool:
    return "down_projection.proj.weight" in state and any(key.startswith("eva.blocks.0.") for key in state)


def _has_timms_layout(state: State, axes: int) -> bool:
    kernel = state.get(KERNEL)
    return kernel is not None and kernel.dim() == 2 + axes and "blocks.0.norm1.weight" in state


def _is_vjepa(state: State) -> bool:
    """Kernels over 2 frames of RGB with square sides, and no prefix tokens."""
    if not _has_timms_layout(state, 3) or {"cls_token", "reg_token"} & state.keys():
        return False
    channels, frames, height, width = state[KERNEL].shape[1:]
    return (channels, frames) == (3, 2) and height == width > 2


def _timm2d_options(state: State, patch: Patch | None) -> BackboneOptions:
    """What the kernel and the names of a 2D network show; the rest is in timm's table of models."""
    kernel = _kernel(state, "timm2d", 4)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    shown = {"in_chans": kernel.shape[1], "embed_dim": kernel.shape[0], "depth": depth}
    return {**shown, "class_token": "cls_token" in state}, ()


def _nidl_encoder(state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Everything but a mask's token, which is part of the training, as in DINOv2's files."""
    own = {key: value for key, value in state.items() if key != "mask_token"}
    return own, tuple(key for key in state if key not in own)


def _nidl_options(state: State, patch: Patch | None) -> BackboneOptions:
    _kernel(state, "nidl", 5)
    return nidl_options(state)


def _kernel(state: State, family: str, axes: int) -> Tensor:
    if any(key.startswith("patch_embed.stem.") for key in state):
        raise WeightsError(
            "a ConvStem3D of this package, whose patch no tensor shows. Use load_backbone(network, path)."
        )
    kernel = state.get(KERNEL)
    if kernel is None or kernel.dim() != axes:
        raise WeightsError(f"family={family!r}, but it has no {KERNEL} of such a network.")
    return kernel


_PRIMUS = (
    "a Primus (dynamic-network-architectures). Its EVA blocks have queries, keys and values of their own, and no "
    "conversion of them is written. Use its own package."
)
_VJEPA = (
    "a V-JEPA or V-JEPA 2, it seems (kernels over 2 frames, RGB, no class token). V-JEPA 2's attention turns its "
    "channels otherwise than rope= does. Use its own package; if it is another network in this layout, without rotary "
    "positions, pass family='nidl'."
)

# the first row that matches names the family; "nidl" is timm's layout in 3D: nidl's network, or a bare state dict of
# this package's, which no key tells apart
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _monai("monai_unetr"),
        _monai("monai_mae"),
        _monai("monai_vit_autoenc"),
        _monai("monai_vit"),
        Family("primus", _is_primus, refusal=_PRIMUS),
        Family("timm2d", partial(_has_timms_layout, axes=2), options=_timm2d_options),
        Family("vjepa2", _is_vjepa, refusal=_VJEPA),
        Family("nidl", partial(_has_timms_layout, axes=3), _nidl_encoder, _nidl_options),
    )
}
OURS = "monai_vit3d"  # the family of our own files, whose header says all


def family_of(state: State) -> str:
    """The family of a state dict; "" for none that is known."""
    return next((family.name for family in FAMILIES.values() if family.matches(state)), "")
