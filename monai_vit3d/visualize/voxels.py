"""Get tokens from a network and a volume, and put values of tokens on the volume's voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vit3d.layers.foreground import keep_foreground
from monai_vit3d.layers.patch_embed import covering_grid
from monai_vit3d.networks import TokenClassifier, VisionTransformer3D


def backbone_of(model: nn.Module) -> VisionTransformer3D:
    """Return the part of ``model`` that makes tokens; its last block is the last that the output depends on.

    Raises:
        TypeError: neither a TokenClassifier nor a VisionTransformer3D.
    """
    if isinstance(model, TokenClassifier):
        return model.backbone
    if isinstance(model, VisionTransformer3D):
        return model
    raise TypeError(
        f"model is a {type(model).__name__}; expected a TokenClassifier or a VisionTransformer3D (of a wrapped or "
        "compiled one, the network inside)."
    )


def as_batch(volume: Tensor) -> Tensor:
    """Return ``(B, C, H, W, D)`` or one ``(C, H, W, D)`` as a plain batch.

    Raises:
        ValueError: another rank.
    """
    if volume.ndim not in (4, 5):
        raise ValueError(f"volume of shape {list(volume.shape)}; expected (B, C, H, W, D) or (C, H, W, D).")
    batch = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    return batch if batch.ndim == 5 else batch[None]


def on_grid(values: Tensor, backbone: VisionTransformer3D, batch: Tensor) -> Tensor:
    """Put values of patch tokens ``(B, N)`` on the patch grid of ``batch``: ``(B, 1, H', W', D')``."""
    grid = covering_grid(batch, backbone.patch_size)
    return values.reshape(len(values), 1, *grid)


@contextmanager
def background_masked(backbone: VisionTransformer3D, batch: Tensor) -> Iterator[Tensor | None]:
    """Run a backbone with tokens of foreground only on every patch within the block, background masked as keys.

    What it computes stays the same, as in exported graphs, and its tokens lie on the whole patch grid.

    Args:
        backbone: one with ``tokens="all"`` is left as it is.
        batch: what it will run on, ``(B, C, H, W, D)``.

    Yields:
        Which patches have a token of their own, ``(B, N)`` bool; None where all have.
    """
    valid = backbone.foreground_patches(batch)
    if valid is None:
        yield None
        return
    kept = keep_foreground(valid, backbone.num_prefix_tokens, fixed_shapes=True)
    backbone.__dict__["_kept_tokens"] = lambda x: kept
    try:
        yield valid
    finally:
        del backbone.__dict__["_kept_tokens"]


def to_voxels(grid: Tensor, patch_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """Interpolate patch grids to voxels trilinearly; patches that reach into the backbone's padding are cut.

    Args:
        grid: ``(B, 1, H', W', D')``.
        patch_size: voxels per patch, ``(h, w, d)``.
        size: the volume's ``(H, W, D)``.

    Returns:
        ``(B, 1, H, W, D)``.
    """
    padded = [n * p for n, p in zip(grid.shape[2:], patch_size)]
    voxels = F.interpolate(grid, size=padded, mode="trilinear", align_corners=False)
    return voxels[..., : size[0], : size[1], : size[2]]


def like(maps: Tensor, volume: Tensor) -> Tensor:
    """Give maps ``(B, 1, H, W, D)`` the leading axes of ``volume``, and its metadata if it is a MetaTensor."""
    maps = (maps if volume.ndim == 5 else maps[0]).to(torch.float32).contiguous()
    return MetaTensor(maps).copy_meta_from(volume) if isinstance(volume, MetaTensor) else maps
