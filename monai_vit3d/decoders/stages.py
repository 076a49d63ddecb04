"""Parts that decoders share: stages of a patch size, a norm over channels, resizing to the image's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_vit3d.layers import to_3tuple
from monai_vit3d.layers.pos_embed import GridShape

recomputed = partial(checkpoint, use_reentrant=False)


def up_strides(patch_size: GridShape) -> list[GridShape]:
    """Return up-sampling factors from the patch grid to (about) one voxel, coarsest stage first.

    Each axis takes as many doublings as bring it nearest to its patch size. Axes with few of them take theirs
    at the coarse stages, so that fine stages work in-plane when slices are thick.

    Args:
        patch_size: voxels per token.

    Returns:
        One factor per axis for every stage: ``(16, 16, 4)`` gives (2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1).
    """
    doublings = [round(math.log2(p)) for p in patch_size]
    return [tuple(2 if stage < n else 1 for n in doublings) for stage in range(max(doublings))]  # type: ignore[misc]


def require_strides(patch_size: int | Sequence[int]) -> list[GridShape]:
    """Return the factors of :func:`up_strides`, one stage or more.

    Raises:
        ValueError: a patch of 1 voxel, which leaves nothing to up-sample.
    """
    patch = to_3tuple(patch_size, "patch_size")
    strides = up_strides(patch)
    if not strides:
        raise ValueError(f"patch_size={patch}: the decoder needs 2 voxels or more on at least one axis.")
    return strides


def stage_maps(patch_size: int | Sequence[int]) -> int:
    """Return how many patch grids a decoder with one for each stage reads, the final one included.

    Raises:
        ValueError: as of :func:`require_strides`.
    """
    return len(require_strides(patch_size))


def stage_widths(strides: list[GridShape], feature_size: int) -> list[int]:
    """Return the channels after each stage but the last, coarsest first: they halve down to ``2 * feature_size``."""
    return [feature_size * 2**level for level in reversed(range(1, len(strides)))]


def require_counts(least: int, **counts: int) -> None:
    """Refuse numbers of channels that no layer can have.

    Raises:
        ValueError: one is below ``least``.
    """
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"{name}={count}; expected {least} or more.")


def require_maps(maps: list[Tensor], needed: int, patch_size: GridShape) -> None:
    """Refuse another number of patch grids.

    Raises:
        ValueError: fewer or more came.
    """
    if len(maps) != needed:
        raise ValueError(f"{len(maps)} patch grids; expected {needed} for patch_size={patch_size}.")


def level_strides(strides: list[GridShape]) -> list[GridShape]:
    """Return how much finer than the patch grid each level is: ``(1, 1, 1)`` first, without the last stage's output."""
    return [tuple(math.prod(s[axis] for s in strides[:i]) for axis in range(3)) for i in range(len(strides))]  # type: ignore[misc]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``(B, C, H, W, D)``, each voxel by itself, as ViTDet and Primus have it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``; the shape stays."""
        x = F.layer_norm(x.permute(0, 2, 3, 4, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 4, 1, 2, 3)


def last_layer(old: nn.Module, num_classes: int) -> nn.Module:
    """Return a newly initialised convolution like ``old``, with another number of output channels.

    Args:
        old: an ``nn.Conv3d`` or ``nn.ConvTranspose3d``.
        num_classes: channels of the dense map.

    Raises:
        ValueError: fewer than 1.
    """
    require_counts(1, num_classes=num_classes)
    shape = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    factory = {"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
    return type(old)(old.in_channels, num_classes, **shape, **factory).train(old.training)


def resize_trilinear(x: Tensor, size: list[int]) -> Tensor:
    """Resize trilinearly; a map that has the size already is returned as it is.

    A tracer may decide that by its example: whether a stage's size is the requested one is a question of
    patch and stride, whatever the grid.
    """
    if x.shape[2] == size[0] and x.shape[3] == size[1] and x.shape[4] == size[2]:
        return x
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)


def resize_like(x: Tensor, other: Tensor) -> Tensor:
    """Resize trilinearly to the size of ``other``."""
    return resize_trilinear(x, [other.shape[2], other.shape[3], other.shape[4]])


def on_image(x: Tensor, image: Tensor) -> Tensor:
    """Resize ``x`` to the voxels of ``image``, with its metadata if it is a MetaTensor.

    For decoders that compute nothing from the image itself, which would have passed the metadata on.
    """
    x = resize_like(x, image)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips what is inside, and only that
        if isinstance(image, MetaTensor):
            x = MetaTensor(x)
            x.copy_meta_from(image)
    return x
