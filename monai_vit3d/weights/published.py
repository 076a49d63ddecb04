"""A backbone's weights in the layout of another project, for whoever goes on with its code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers import RotaryPositions3D
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.layer_facts import unlike_layers
from monai_vit3d.networks.lora import merged_lora
from monai_vit3d.networks.wrappers import unwrap_network

from .backbone import HEAD
from .convert.families import FAMILIES
from .sources import backbone_from, identify

# whose code builds some sizes with another eps of the norms than its own default
_OF_ANY_EPS = ("spectre", "spectre_combiner")
# the network as a whole, what is compared otherwise, and what the others do not have
_NOT_COMPARED = (".", "rope.", "norm.", "fc_norm.", *HEAD)


def to_published(backbone: VisionTransformer3D, family: str) -> dict[str, Tensor]:
    """Return a backbone's state dict in a published layout: what :func:`backbone_from` reads, the other way.

    The head is left out; adapters are merged. What the tensors do not show (heads, positions of the rotary kind) is
    compared with what that layout stands for.

    Args:
        backbone: the network, wrapped or not.
        family: ``"primus"``, ``"spectre"``, ``"spectre_combiner"``, ``"dinov2_3d"``, ``"dinov3_3d"``, ``"vjepa2"``,
            ``"hf_vjepa2"`` or ``"neuro_jepa"``.

    Returns:
        Copies of the tensors by that project's names for the encoder, without the prefixes of its trainers.

    Raises:
        UsageError: another network, or a family without a way back.
        WeightsError: the layout has no place for what the network has.
    """
    backbone = unwrap_network(backbone)
    ways = [row.name for row in FAMILIES.values() if row.back is not None]
    if not isinstance(backbone, VisionTransformer3D) or family not in ways:
        came = f"backbone is a {type(backbone).__name__}, family={family!r}"
        raise UsageError(f"{came}; expected a VisionTransformer3D and one of {', '.join(map(repr, ways))}.")
    network, back = merged_lora(backbone), FAMILIES[family].back
    state = {_final_norm(key): value for key, value in network.state_dict().items() if not key.startswith(HEAD)}
    theirs = {} if back is None else back(state, _periods(network.rope))
    same: dict[str, Any] = {"num_heads": int(network.num_heads), "img_size": network.img_size, "device": "meta"}
    same |= {key: getattr(network, key) for key in ("dynamic_img_size", "dynamic_img_pad")}
    if family in _OF_ANY_EPS and hasattr(norm := network.blocks[0].norm1, "eps"):
        same["norm_eps"] = norm.eps
    again = backbone_from(identify(theirs, "backbone", family=family), **same).network
    unlike = [name for name in unlike_layers(network, again) if not f"{name}.".startswith(_NOT_COMPARED)]
    unlike += [] if _same_angles(network, again) else ["rope"]
    if unlike:
        raise WeightsError(f"backbone: {family} has another layer, or none, in place of {', '.join(unlike[:5])}.")
    return {key: value.detach().clone() for key, value in theirs.items()}


def _final_norm(key: str) -> str:
    """Return a tensor's name with the final norm before the pooling, where the others have it."""
    return f"norm.{key.removeprefix('fc_norm.')}" if key.startswith("fc_norm.") else key


def _same_angles(one: VisionTransformer3D, other: VisionTransformer3D) -> bool:
    if one.rope is None or other.rope is None:
        return one.rope is other.rope
    empty = torch.zeros(1, dtype=torch.float64)
    ours, theirs = (rope(empty, one.grid_size, one.patch_size) for rope in (one.rope, other.rope))
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def _periods(rope: nn.Module | None) -> Tensor | None:
    """Return the periods of an axis' pairs, float32."""
    if not isinstance(rope, RotaryPositions3D):
        return None
    count = max(rope.pairs)
    speeds = rope.ladder or [rope.temperature ** (-k / count) for k in range(count)]
    return 1 / torch.tensor(speeds, dtype=torch.float32)
