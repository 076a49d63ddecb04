"""Named sizes of the backbone: a table, and the function that reads it. Importing this registers them in timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from timm.models import register_model
from timm.models._features import FeatureGetterNet
from torch import nn

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


def create_model(
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
        raise ValueError(f"preset {name!r} is unknown; one of {', '.join(PRESETS)} is needed.")
    return VisionTransformer3D(img_size, patch_size, **{**asdict(PRESETS[name]), **options})


def _timm_entry(name: str) -> Callable[..., nn.Module]:
    """What timm calls for ``timm.create_model(name)``; timm's own builder refuses 3D sizes."""

    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        features_only: bool = False,
        out_indices: Any = 4,
        **options: Any,
    ) -> nn.Module:
        """One of monai_vit3d's presets; takes any keyword of VisionTransformer3D."""
        if pretrained:
            raise ValueError(f"{name}: no pretrained weights are published under this name; use pretrained=False.")
        model = create_model(name, **options)
        return FeatureGetterNet(model, out_indices) if features_only else model

    entry.__name__ = entry.__qualname__ = name
    return entry


for _name in PRESETS:
    register_model(_timm_entry(_name))
