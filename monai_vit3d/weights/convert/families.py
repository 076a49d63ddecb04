"""Table of checkpoint kinds: how each is recognised, the options that its tensors show, and its key mapping."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from monai_vit3d.data.errors import WeightsError

from . import monai_keys
from .dinov2_3d import DINOV2_3D
from .dinov3_3d import DINOV3_3D
from .family import BackboneOptions, Family, Patch, State, has_timms_layout
from .nidl import nidl_options, nidl_sincos
from .primus import PRIMUS
from .refused import reason_to_refuse
from .shapes import KERNEL
from .spectre import SPECTRE, SPECTRE_COMBINER
from .transformers_vit import HF_DINOV2, HF_VIDEOMAE, HF_VIT
from .videomae import VIDEOMAE
from .vjepa import HF_VJEPA, NEURO_JEPA, VJEPA


def _monai(name: str) -> Family:
    return Family(
        name,
        partial(monai_keys.is_of, family=name),
        partial(monai_keys.split_encoder, family=name),
        lambda state, patch: monai_keys.encoder_options(state, name, patch),
        monai_keys.to_our_keys,
    )


def _timm2d_options(state: State, patch: Patch | None) -> BackboneOptions:
    """Read the options that the kernel and the names of a 2D network show; timm's table of models has the others."""
    kernel = _kernel(state, "timm2d", 4)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    shown = {"in_chans": kernel.shape[1], "embed_dim": kernel.shape[0], "depth": depth}
    return {**shown, "class_token": "cls_token" in state}, ()


def _nidl_encoder(state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Split off a mask's token, which is part of the training, as in DINOv2's files."""
    own = {key: value for key, value in state.items() if key != "mask_token"}
    return own, tuple(key for key in state if key not in own)


def _nidl_options(state: State, patch: Patch | None) -> BackboneOptions:
    _kernel(state, "nidl", 5)
    return nidl_options(state)


def _kernel(state: State, family: str, axes: int) -> Tensor:
    if any(key.startswith(("patch_embed.stem.", "patch_embed.stages.")) for key in state):
        raise WeightsError(
            "a convolutional stem of this package, whose patch no tensor shows. Use load_backbone(network, path)."
        )
    kernel = state.get(KERNEL)
    if kernel is None or kernel.dim() != axes:
        raise WeightsError(f"family={family!r}, but it has no {KERNEL} of such a network.")
    return kernel


# the first row that matches names the family; "nidl" is timm's layout in 3D: nidl's network, or a bare state dict of
# this package's, which no key tells apart
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _monai("monai_unetr"),
        _monai("monai_mae"),
        _monai("monai_vit_autoenc"),
        _monai("monai_vit"),
        PRIMUS,
        SPECTRE,
        SPECTRE_COMBINER,
        DINOV3_3D,
        DINOV2_3D,
        NEURO_JEPA,
        VIDEOMAE,
        VJEPA,
        HF_VJEPA,
        HF_VIT,
        HF_DINOV2,
        HF_VIDEOMAE,
        Family("timm2d", partial(has_timms_layout, axes=2), options=_timm2d_options),
        Family(
            "nidl",
            partial(has_timms_layout, axes=3),
            _nidl_encoder,
            _nidl_options,
            fixed_positions=nidl_sincos,
        ),
    )
}
OURS = "monai_vit3d"  # the family of our own files, whose header says all


def family_of(state: State) -> str:
    """Return the family of a state dict; "" for none that is known, or one that cannot be hosted."""
    name = next((family.name for family in FAMILIES.values() if family.matches(state)), "")
    return "" if name and reason_to_refuse(state) else name
