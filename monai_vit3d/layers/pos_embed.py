"""Absolute positions on a 3D patch grid: sin-cos tables and resampling of learned ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GridShape = tuple[int, int, int]


def sincos_pos_embed(
    grid: tuple[int, int, int],
    embed_dim: int,
    temperature: float = 10000.0,
    device: torch.device | None = None,
) -> Tensor:
    """Build a fixed sin-cos table; each channel depends on one axis only, and every position is unique.

    The 1D sines of Vaswani et al. 2017 (arXiv:1706.03762, section 3.5) for each axis, side by side: the first
    third of the channels encodes H, the second W, the last D. When ``embed_dim`` is no multiple of 6, H and
    then W take the pairs left over; an odd last channel is 0.

    Args:
        grid: patches along ``(H, W, D)``.
        embed_dim: channels, at least 6.
        temperature: base of the wavelengths.
        device: where to build it.

    Returns:
        ``(1, H' * W' * D', embed_dim)`` float32, flattened with D fastest, as the tokens are.

    Raises:
        ValueError: fewer than 6 channels.
    """
    if embed_dim < 6:
        raise ValueError(f"embed_dim={embed_dim}: a 3D sin-cos table needs a sine and a cosine per axis, 6 channels.")
    pairs = embed_dim // 2
    parts = []
    for axis in range(3):
        n = pairs // 3 + int(axis < pairs % 3)
        # float64: the angles of long axes keep their last digits; the table is built once
        omega = temperature ** (-torch.arange(n, dtype=torch.float64, device=device) / n)
        angle = torch.arange(grid[axis], dtype=torch.float64, device=device)[:, None] * omega
        shape = [1, 1, 1, 2 * n]
        shape[axis] = grid[axis]
        table = torch.cat([angle.sin(), angle.cos()], dim=1).reshape(shape)
        parts.append(table.expand(grid[0], grid[1], grid[2], 2 * n))
    table = torch.cat(parts, dim=-1).flatten(0, 2)[None]
    return F.pad(table, [0, embed_dim - 2 * pairs]).float()


def resample_pos_embed(
    pos: Tensor, old: tuple[int, int, int], new: tuple[int, int, int], num_prefix_tokens: int
) -> Tensor:
    """Resample learned positions to another grid trilinearly; prefix tokens stay as they are.

    Args:
        pos: ``(1, P + N, C)``, P prefix tokens before the N patches of ``old``.
        old: the grid that ``pos`` was made for.
        new: the grid to fit to.
        num_prefix_tokens: P.

    Returns:
        ``(1, P + N', C)`` in the dtype of ``pos``.
    """
    prefix, patches = pos[:, :num_prefix_tokens], pos[:, num_prefix_tokens:]
    volume = patches.reshape(1, old[0], old[1], old[2], -1).permute(0, 4, 1, 2, 3)
    # float32 at least: interpolation in bf16 would round each weight
    work = volume.float() if volume.dtype in (torch.float16, torch.bfloat16) else volume
    work = F.interpolate(work, size=[new[0], new[1], new[2]], mode="trilinear", align_corners=False)
    patches = work.to(pos.dtype).permute(0, 2, 3, 4, 1).flatten(1, 3)
    return torch.cat([prefix, patches], dim=1)


def fit_pos_embed(
    pos: Tensor,
    old: tuple[int, int, int],
    new: tuple[int, int, int],
    num_prefix_tokens: int,
    learned: bool,
    resample: bool,
) -> Tensor:
    """Return the positions for the grid ``new`` from those for ``old``.

    Args:
        pos: ``(1, P + N, C)``.
        old: the grid that ``pos`` was made for.
        new: the grid to fit to.
        num_prefix_tokens: P.
        learned: whether ``pos`` was learned; a sin-cos table is computed anew instead.
        resample: whether ``new`` covers the whole of ``old``; else it is the corner of it.

    Returns:
        ``(1, P + N', C)``.
    """
    # what is traced with sizes that may change must hold for all of them, not only for those of the example
    if _are_constants(new) and old == new:
        return pos
    if not learned:
        return sincos_pos_embed(new, pos.shape[2], device=pos.device).to(pos.dtype)
    if resample:
        return resample_pos_embed(pos, old, new, num_prefix_tokens)
    return crop_pos_embed(pos, old, new, num_prefix_tokens)


def _are_constants(grid: tuple[int, int, int]) -> bool:
    """Return whether a grid's sizes are plain numbers, not placeholders of a tracer."""
    if torch.jit.is_scripting():
        return True
    return not torch.jit.is_tracing() and not any(isinstance(n, torch.SymInt) for n in grid)


def crop_pos_embed(pos: Tensor, old: tuple[int, int, int], new: tuple[int, int, int], num_prefix_tokens: int) -> Tensor:
    """Return the positions of the first ``new`` patches of each axis of the grid ``old``; prefix tokens stay.

    Args:
        pos: ``(1, P + N, C)``.
        old: the grid that ``pos`` was made for.
        new: the size of the corner.
        num_prefix_tokens: P.

    Returns:
        ``(1, P + N', C)``.
    """
    prefix, patches = pos[:, :num_prefix_tokens], pos[:, num_prefix_tokens:]
    volume = patches.reshape(1, old[0], old[1], old[2], -1)
    for axis in range(3):  # by number: tracers with sizes that may change compare the strides of a slice
        volume = volume.index_select(axis + 1, torch.arange(new[axis], device=pos.device))
    return torch.cat([prefix, volume.flatten(1, 3)], dim=1)
