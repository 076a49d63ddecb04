"""Named sizes of the backbone: a table, and the function that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monai_vit3d.data.nearest import did_you_mean

from .vit3d import VisionTransformer3D


@dataclass(frozen=True)
class Preset:
    """The numbers that make a size; every head is 64 wide."""

    embed_dim: int
    depth: int
    num_heads: int


PRESETS = {
    "vit3d_tiny": Preset(192, 12, 3),
    "vit3d_small": Preset(384, 12, 6),
    "vit3d_base": Preset(768, 12, 12),
    "vit3d_large": Preset(1024, 24, 16),
    "vit3d_huge": Preset(1280, 32, 20),
}


def create_preset(
    name: str, img_size: int | Sequence[int] = 96, patch_size: int | Sequence[int] = 16, **options: Any
) -> VisionTransformer3D:
    """Build a backbone of a named size.

    Args:
        name: a key of ``PRESETS``.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch size in ``(H, W, D)``.
        options: any keyword of :class:`VisionTransformer3D`; it overrides the preset's.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(
            f"preset {name!r} is unknown; expected one of {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}"
        )
    return VisionTransformer3D(img_size, patch_size, **{**asdict(PRESETS[name]), **options})
