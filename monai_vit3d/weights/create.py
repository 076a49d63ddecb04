"""One constructor by name: this package's presets, published models, and timm's 2D Vision Transformers in 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.nearest import did_you_mean
from monai_vit3d.data.published_models import published_models
from monai_vit3d.networks import PRESETS, VisionTransformer3D, create_preset
from monai_vit3d.networks.meta_init import blank_network

from .backbone import load_backbone
from .convert.timm2d import create_timm2d, timms_name
from .fetch import create_published


def create_model(
    name: str,
    img_size: int | Sequence[int] | None = None,
    patch_size: int | Sequence[int] | None = None,
    *,
    pretrained: bool | Mapping[str, Any] | str | Path | None = False,
    **options: Any,
) -> VisionTransformer3D:
    """Build a backbone of a named size, a published model, or one of timm's 2D Vision Transformers in 3D.

    Weights of a file are in memory once: the network is built without memory and given what was read. Random numbers
    are drawn only for what does not come, such as a new head.

    Args:
        name: a key of ``PRESETS``, a published model's, as ``"colipri"`` (``vit3d weights list``), or timm's, as
            ``"vit_base_patch14_reg4_dinov2.lvd142m"``.
        img_size: input size in ``(H, W, D)``; None is 96, or what the published model was trained on.
        patch_size: patch size in ``(H, W, D)``; None is 16, or the published model's.
        pretrained: of timm's names: True takes timm's weights, a state dict or a file are taken instead. What became
            of each key is logged; :func:`create_timm2d` returns it. Of presets: a file, as for :func:`load_backbone`.
            Of published models: True fetches them from the hub, a path is their file.
        options: any keyword of :class:`VisionTransformer3D`; it overrides the name's own. Of timm's names also
            ``kernel``, ``positions``, ``axis``, ``grid``, ``strict``, ``take``, as for :func:`from_timm2d`. Of
            published models also ``accept_licence``, as for :func:`fetch_weights`.

    Raises:
        ValueError: an unknown name.
        UsageError: True or a state dict for a preset, no weights of which are published; a published model without
            weights, or with a licence that was not accepted.
        WeightsError: a file that cannot be read, weights that do not fit, or a model of timm's that cannot be hosted
            in 3D.

    Example:
        >>> net = create_model("vit_small_patch14_reg4_dinov2", (28, 28, 14), (14, 14, 7), in_chans=1)
        >>> net.num_reg_tokens
        4
    """
    if name in published_models():
        return create_published(name, img_size, patch_size, pretrained=pretrained, **options)
    img_size, patch_size = (96 if img_size is None else img_size), (16 if patch_size is None else patch_size)
    if name not in PRESETS and timm.is_model(timms_name(name)):
        return create_timm2d(name, img_size, patch_size, pretrained=pretrained, **options).network
    if name not in PRESETS:
        meant = did_you_mean(name, [*PRESETS, *published_models(), *timm.list_models(module="vision_transformer")])
        raise ValueError(
            f"{name!r} is unknown; expected one of {', '.join(PRESETS)}, a published model (vit3d weights list) or one "
            f"of timm's Vision Transformers.{meant}"
        )
    if isinstance(pretrained, (str, Path)):
        device = options.pop("device", None) or torch.get_default_device()
        blank = blank_network(partial(create_preset, name, img_size, patch_size), **options)
        load_backbone(blank, pretrained)
        return blank.to(device)
    if pretrained is not False and pretrained is not None:
        raise UsageError(
            f"{name}: no pretrained weights are published under this name. Use pretrained=False, or the path of a "
            "file of yours; or one of timm's names."
        )
    return create_preset(name, img_size, patch_size, **options)
