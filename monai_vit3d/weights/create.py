"""One constructor by name: this package's presets, and timm's 2D Vision Transformers in 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from ..data.errors import UsageError
from ..networks import PRESETS, VisionTransformer3D
from ..networks import create_model as create_preset
from .convert.timm2d import create_timm2d


def create_model(
    name: str,
    img_size: int | Sequence[int] = 96,
    patch_size: int | Sequence[int] = 16,
    *,
    pretrained: bool | Mapping[str, Any] | str | Path = False,
    **options: Any,
) -> VisionTransformer3D:
    """Build a backbone of a named size, or one of timm's 2D Vision Transformers in 3D.

    Args:
        name: a key of ``PRESETS``, or timm's name, as ``"vit_base_patch14_reg4_dinov2.lvd142m"``.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch size in ``(H, W, D)``.
        pretrained: of timm's names: True takes timm's weights, a state dict or a file are taken instead. What became
            of each key is logged; :func:`create_timm2d` returns it.
        options: any keyword of :class:`VisionTransformer3D`; it overrides the name's own. Of timm's names also
            ``kernel``, ``positions``, ``axis``, ``grid``, ``strict``, as for :func:`from_timm2d`.

    Raises:
        ValueError: an unknown name.
        UsageError: weights for a preset, of which none are published.
        WeightsError: weights that do not fit, or a model of timm's that cannot be hosted in 3D.

    Example:
        >>> net = create_model("vit_small_patch14_reg4_dinov2", (28, 28, 14), (14, 14, 7), in_chans=1)
        >>> net.num_reg_tokens
        4
    """
    if name in PRESETS or not timm.is_model(name):
        if pretrained is not False:
            raise UsageError(
                f"{name}: no pretrained weights are published under this name. Use pretrained=False, then "
                "load_backbone(network, path) for a file of yours; or one of timm's names."
            )
        return create_preset(name, img_size, patch_size, **options)
    return create_timm2d(name, img_size, patch_size, pretrained=pretrained, **options).network
