"""Which patches of a volume hold foreground, and sequences of the tokens of those alone.

Attention over the tokens that are left is, number for number, attention over all of them with the keys of the others
masked; so a graph whose shapes may not depend on values masks instead, and gives the same.
"""

# annotations stay objects, not strings: TorchScript compiles these functions

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .patch_embed import covering_grid


class KeptTokens(NamedTuple):
    """The patches that get a token.

    Args:
        ids: ``(B, K)`` long, numbers of patches, each once in a row.
        is_foreground: ``(B, K)`` bool; the others fill up the rows of volumes with less foreground.
        key_mask: ``(B, 1, 1, P + K)`` bool, as timm's attention takes it; None where every key counts.
        num_patches: N, of the whole grid.
        is_whole: whether every patch is kept, in order.
    """

    ids: Tensor
    is_foreground: Tensor
    key_mask: Tensor | None
    num_patches: int
    is_whole: bool


def find_foreground(x: Tensor, patch_size: tuple[int, int, int], background_max: float | None = None) -> Tensor:
    """Find the patches that hold more than background.

    Args:
        x: ``(B, C, H, W, D)``. An axis' last patch may lie partly outside: its voxels inside count.
        patch_size: voxels per patch along ``(H, W, D)``.
        background_max: a patch with a voxel above it, in any channel, is foreground; None: a patch that is not
            constant, in any channel. NaN is foreground.

    Returns:
        ``(B, N)`` bool, D fastest.
    """
    h, w, d = patch_size
    gh, gw, gd = covering_grid(x, patch_size)
    size = x.shape
    # a part of a patch is made whole by its last voxels, again and again; the sizes are of the input alone, as an ONNX
    # exporter takes those of what it has reshaped for constants
    whole = F.pad(x.detach(), [0, gd * d - size[4], 0, gw * w - size[3], 0, gh * h - size[2]], "replicate")
    highest = lowest = whole.reshape(size[0], size[1], gh, h, gw, w, gd, d)
    for axis in (3, 4, 5):  # H first: reductions along D, in memory the closest, are the slowest
        highest, lowest = highest.amax(axis), lowest.amin(axis)
    is_background = highest == lowest if background_max is None else highest <= background_max
    return ~is_background.all(1).flatten(1)


def keep_foreground(patch_valid: Tensor, num_prefix_tokens: int, fixed_shapes: bool = False) -> KeptTokens:
    """Choose the tokens of the patches that hold foreground.

    Args:
        patch_valid: ``(B, N)`` bool, as :func:`find_foreground` returns it.
        num_prefix_tokens: P, tokens before the patches; all are kept.
        fixed_shapes: keep every token, and mask the keys of background: for exported graphs.
    """
    batch, count = patch_valid.shape[0], patch_valid.shape[1]
    if fixed_shapes:
        ids = torch.arange(count, device=patch_valid.device)[None].expand(batch, -1)
        return KeptTokens(ids, patch_valid, key_mask(patch_valid, num_prefix_tokens), count, True)
    most = max(int(patch_valid.sum(1).max()), 1)
    ids = patch_valid.to(torch.uint8).argsort(stable=True, dim=1, descending=True)[:, :most]
    is_foreground = patch_valid.gather(1, ids)
    mask = None if bool(is_foreground.all()) else key_mask(is_foreground, num_prefix_tokens)
    return KeptTokens(ids, is_foreground, mask, count, False)


def key_mask(patch_valid: Tensor, num_prefix_tokens: int) -> Tensor:
    """Return which keys count, ``(B, 1, 1, P + N)``; of a volume without any all do, as a softmax needs one.

    Args:
        patch_valid: ``(B, N)`` bool.
        num_prefix_tokens: P, which all count.
    """
    keys = torch.cat([patch_valid.new_ones(patch_valid.shape[0], num_prefix_tokens), patch_valid], 1)
    return (keys | ~keys.any(1, keepdim=True))[:, None, None]


def refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Refuse masks of attention that a caller made for the whole grid.

    Raises:
        ValueError: there is one.
    """
    if attn_mask is not None or is_causal:
        raise ValueError(
            "attn_mask and is_causal are of all patches, but this network has tokens of foreground only: call "
            "set_tokens('all') first."
        )


def spread_tokens(tokens: Tensor, kept: KeptTokens) -> Tensor:
    """Put kept tokens back on the whole grid, with zeros at background.

    Args:
        tokens: ``(B, P + K, E)``, prefix tokens first.
        kept: which patches they are of.

    Returns:
        ``(B, P + N, E)``.
    """
    first = tokens.shape[1] - kept.ids.shape[1]
    patches = tokens[:, first:].masked_fill(~kept.is_foreground[:, :, None], 0.0)
    grid = patches.new_zeros(patches.shape[0], kept.num_patches, patches.shape[2])
    grid = grid.scatter(1, kept.ids[:, :, None].expand(-1, -1, patches.shape[2]), patches)
    return torch.cat([tokens[:, :first], grid], 1)


def pool_foreground(tokens: Tensor, valid: Tensor, mode: str) -> Tensor:
    """Pool the tokens that count; zeros where none does.

    Args:
        tokens: ``(B, N, E)``.
        valid: ``(B, N)`` bool.
        mode: ``"avg"``, ``"max"`` or ``"avgmax"``.

    Returns:
        ``(B, E)``.
    """
    left_out, some = ~valid[:, :, None], valid.any(1, keepdim=True)
    mean = tokens.masked_fill(left_out, 0.0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1).to(tokens.dtype)
    if mode == "avg":
        return mean
    highest = tokens.masked_fill(left_out, float("-inf")).amax(1).masked_fill(~some, 0.0)
    return highest if mode == "max" else 0.5 * (highest + mean)
