"""The families of checkpoints, by the keys that only they have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from . import monai_keys
from .shapes import KERNEL

# recognised, not hosted: why
REFUSED = {
    "primus": "a Primus (dynamic-network-architectures). Its EVA blocks have queries, keys and values of their own, "
    "and no conversion of them is written. Use its own package",
    "vjepa2": "a V-JEPA or V-JEPA 2, it seems (kernels over 2 frames, RGB, no class token). V-JEPA 2's attention turns "
    "its channels otherwise than rope= does. Use its own package; if it is another network in this layout, "
    "without rotary positions, pass family='nidl'",
}


def family_by_keys(state: Mapping[str, Tensor]) -> str:
    """The family whose keys these are; empty for none that is known."""
    monai = monai_keys.family_of(state)
    if monai:
        return monai
    if "down_projection.proj.weight" in state and any(key.startswith("eva.blocks.0.") for key in state):
        return "primus"
    kernel = state.get(KERNEL)
    if kernel is None or kernel.dim() not in (4, 5) or "blocks.0.norm1.weight" not in state:
        return ""
    if kernel.dim() == 4:
        return "timm2d"
    frames = kernel.shape[1:3] == (3, 2) and kernel.shape[3] == kernel.shape[4] > 2
    return "vjepa2" if frames and not {"cls_token", "reg_token"} & state.keys() else "nidl"
