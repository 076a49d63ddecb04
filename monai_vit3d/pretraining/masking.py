"""Draw masks for self-supervised tasks in 3D: the blocks of I-JEPA, the random tokens and blocks of MAE.

A token's number is its index in the patch grid ``(H', W', D')`` read with D fastest, as the networks flatten it.
All draws come from the caller's generator: the same generator state gives the same masks, and with a generator of
the CPU they are the same on every device. Counts and block sides are the same for all samples of a batch, so that
gathers are rectangular; positions differ by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, log, prod
from typing import NamedTuple

import torch
from torch import Tensor

from monai_vit3d.data.errors import UsageError

Sides = tuple[int, int, int]
ScaleRange = tuple[float, float]


class JEPAMasks(NamedTuple):
    """Token numbers, long, ascending: ``context`` ``(B, Nc)`` and, of no common token, ``targets`` ``(B, M, Nt)``."""

    context: Tensor
    targets: Tensor


class MAEMasks(NamedTuple):
    """Token numbers, long, ascending: ``visible`` ``(B, Nv)`` and ``masked`` ``(B, Nm)``, together the grid."""

    visible: Tensor
    masked: Tensor


def sample_jepa_masks(
    batch: int,
    grid: Sequence[int],
    *,
    generator: torch.Generator,
    targets: int = 4,
    target_scale: ScaleRange = (0.08, 0.12),
    aspect: ScaleRange = (0.75, 1.5),
    context_scale: ScaleRange = (0.85, 1.0),
    min_context: float = 0.4,
    patch_mm: Sequence[float] | None = None,
    foreground: Tensor | None = None,
    device: torch.device | str | None = None,
) -> JEPAMasks:
    """Draw the multi-block masks of I-JEPA (Assran et al. 2023, arXiv:2301.08243, section 3) on a 3D grid.

    The context is a large block without all target blocks, reduced at random to the count that all samples of the batch
    have. It never falls below ``min_context``: a target goes only to positions that leave so much of the context. There
    is always one, on top of the target before it.

    Two defaults are not the paper's. Its targets, 0.15 to 0.2 of an image, have sides of 0.39 to 0.45 of the image's;
    the same shares of a volume are sides of 0.53 to 0.58, and hide the middle of the grid nearly always. With 0.08 to
    0.12 the context contains the middle as in 2D, in about 1 of 10 samples. A floor of 0.4 lies between the share of an
    image that four targets leave (0.53 on average) and the count that a batch of 128 such images has in common (0.29).

    Args:
        batch: number of samples B.
        grid: patches along ``(H, W, D)``.
        generator: of all random draws.
        targets: blocks M to predict; they may overlap each other.
        target_scale: a target's volume, as a share of the grid's.
        aspect: how far a target may be from a cube: two sides differ by a factor of up to ``sqrt(high / low)``, the
            axes treated alike (in 2D, the paper's range of height to width is as wide).
        context_scale: volume of the context's block, of the grid's proportions; ``(1, 1)`` for the complement of all
            targets, as in V-JEPA (Bardes et al. 2024, arXiv:2404.08471).
        min_context: least share of the grid's tokens in the context.
        patch_mm: a patch's sides in mm, so that targets are cubes in the body however thick the slices; None for
            cubes in tokens.
        foreground: ``(B, H', W', D')``, each patch's share of foreground: a target's position is drawn in proportion
            to the foreground in it; uniformly if there is none.
        device: of the masks; None for the generator's.

    Returns:
        Masks with ``Nc >= min_context * H' * W' * D'``.

    Raises:
        UsageError: an argument out of its range, or targets and context that do not fit into the grid together.
    """
    size = _checked_grid(batch, grid, patch_mm)
    _check_ranges(aspect, target_scale=target_scale, context_scale=context_scale)
    device = torch.device(generator.device if device is None else device)
    floor = ceil(max(1.0, min_context * prod(size) - 1e-6)) if 0 <= min_context <= 1 else prod(size)
    if targets < 1 or not min_context <= context_scale[0] - target_scale[1] or prod(size) <= floor:
        raise UsageError(
            f"targets={targets}, target_scale={target_scale}, min_context={min_context}, context_scale={context_scale} "
            f"on a grid of {size}: expected one target or more, and the smallest context block must hold the largest "
            "target besides min_context. Lower target_scale or min_context."
        )
    outer = _draw_sides(size, [1 / n for n in size], context_scale, (1.0, 1.0), generator)
    outer = size if prod(outer) <= floor else outer  # grids of few tokens, where rounding takes much
    sides = _shrunk(_draw_sides(size, patch_mm, target_scale, aspect, generator), size, prod(outer) - floor)
    weights = _weights(foreground, batch, size, device)
    free = torch.zeros(batch, prod(size), dtype=torch.bool, device=device)
    free.scatter_(1, _draw_blocks(_windows(torch.ones_like(weights), outer), outer, size, generator), True)
    position_weights, blocks = _windows(weights, sides), []
    for _ in range(targets):
        remaining = free.sum(1)[:, None, None, None] - _windows(free.view(batch, *size), sides)
        blocks.append(_draw_blocks(position_weights * (remaining >= floor), sides, size, generator))
        free.scatter_(1, blocks[-1], False)
    return JEPAMasks(_pick(free, int(free.sum(1).min()), generator), torch.stack(blocks, 1))


def sample_random_masks(
    batch: int,
    grid: Sequence[int],
    ratio: float = 0.75,
    *,
    generator: torch.Generator,
    device: torch.device | str | None = None,
) -> MAEMasks:
    """Draw the random masks of MAE (He et al. 2022, arXiv:2111.06377, section 3), without replacement.

    Args:
        batch: number of samples B.
        grid: patches along ``(H, W, D)``.
        ratio: share of the tokens to mask, rounded to the nearest count.
        generator: of all random draws.
        device: of the masks; None for the generator's.

    Raises:
        UsageError: an argument out of its range, or a ratio that masks no token or all.
    """
    size = _checked_grid(batch, grid)
    device = torch.device(generator.device if device is None else device)
    order = _uniform((batch, prod(size)), generator, device)
    return _split(order, _masked_count(ratio, size))


def sample_block_masks(
    batch: int,
    grid: Sequence[int],
    ratio: float = 0.75,
    *,
    generator: torch.Generator,
    scale: ScaleRange = (0.08, 0.2),
    aspect: ScaleRange = (0.75, 1.5),
    patch_mm: Sequence[float] | None = None,
    device: torch.device | str | None = None,
) -> MAEMasks:
    """Draw block-wise masks for MAE, with blocks as in BEiT (Bao et al. 2022, arXiv:2106.08254, algorithm 1), in 3D.

    Blocks are added, each around a token that is still visible, until the ratio is reached; only the middle of a
    sample's last block is masked, so that the count is exact. Blocks may extend beyond the grid: otherwise they would
    hide the middle of a volume nearly always.

    Args:
        batch: number of samples B.
        grid: patches along ``(H, W, D)``.
        ratio: share of the tokens to mask, rounded to the nearest count.
        generator: of all random draws.
        scale: a block's volume, as a share of the grid's; from BEiT's 16 of 196 patches.
        aspect: how far a block may be from a cube, as in :func:`sample_jepa_masks`.
        patch_mm: a patch's sides in mm, for cubes in the body; None for cubes in tokens.
        device: of the masks; None for the generator's.

    Raises:
        UsageError: an argument out of its range, or a ratio that masks no token or all.
    """
    size = _checked_grid(batch, grid, patch_mm)
    _check_ranges(aspect, scale=scale)
    count = _masked_count(ratio, size)
    device = torch.device(generator.device if device is None else device)
    order = torch.full((batch, *size), float("inf"), dtype=torch.float64, device=device)
    step = 0
    while int(order.isfinite().flatten(1).sum(1).min()) < count:
        sides = _draw_sides(size, patch_mm, scale, aspect, generator)
        middle = _draw_positions(order.isinf(), generator) + _uniform((batch, 3), generator, device) - 0.5
        distance = _distance(middle, sides, size)
        # a token of several blocks belongs to the first
        order = torch.minimum(order, torch.where(distance <= 1, step + 0.999 * distance, float("inf")))
        step += 1
    return _split(order.flatten(1), count)


def _checked_grid(batch: int, grid: Sequence[int], patch_mm: Sequence[float] | None = None) -> Sides:
    if batch < 1:
        raise UsageError(f"batch={batch}; expected one or more samples.")
    if len(grid) != 3 or any(int(n) != n or n < 1 for n in grid) or prod(grid) < 2:
        raise UsageError(f"grid={tuple(grid)}; expected three counts of patches (H', W', D'), two patches or more.")
    if patch_mm is not None and (len(patch_mm) != 3 or not all(0 < mm < float("inf") for mm in patch_mm)):
        raise UsageError(f"patch_mm={tuple(patch_mm)}; expected a patch's three sides in mm, each positive.")
    return int(grid[0]), int(grid[1]), int(grid[2])


def _check_ranges(aspect: ScaleRange, **scales: ScaleRange) -> None:
    for name, scale in scales.items():
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UsageError(f"{name}={scale}; expected shares of the grid's volume, 0 < low <= high <= 1.")
    if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1] < float("inf"):
        raise UsageError(f"aspect={aspect}; expected ratios of two sides, 0 < low <= high.")


def _weights(foreground: Tensor | None, batch: int, grid: Sides, device: torch.device) -> Tensor:
    """Weigh the patches ``(B, H', W', D')`` by whole numbers, whose sums are the same on every device."""
    if foreground is None:
        return torch.ones((batch, *grid), dtype=torch.long, device=device)
    if foreground.shape != (batch, *grid) or not bool(((foreground >= 0) & (foreground <= 1)).all()):
        shape = tuple(foreground.shape)
        raise UsageError(f"foreground of shape {shape}; expected shares from 0 to 1 of shape {(batch, *grid)}.")
    # + 1: in a sample without foreground all positions have the same weight
    return (foreground.to(device, torch.float32) * 65535).round().long() + 1


def _masked_count(ratio: float, grid: Sides) -> int:
    count = round(ratio * prod(grid)) if 0 < ratio < 1 else 0
    if not 0 < count < prod(grid):
        raise UsageError(f"ratio={ratio} on a grid of {grid}; expected a share that masks some tokens, not all.")
    return count


def _uniform(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=generator.device).to(device)


def _draw_sides(
    grid: Sides, patch_mm: Sequence[float] | None, scale: ScaleRange, aspect: ScaleRange, generator: torch.Generator
) -> Sides:
    """Draw a block's volume and shape, and compute its sides in patches, from 1 to the grid's."""
    patch = [1.0, 1.0, 1.0] if patch_mm is None else [float(mm) for mm in patch_mm]
    share, *form = torch.rand(4, generator=generator, device=generator.device).tolist()
    stretch = [exp((u - 0.5) * log(aspect[1] / aspect[0]) / 2) for u in form]
    volume = (scale[0] + share * (scale[1] - scale[0])) * prod(grid)
    ideal = [0.0, 0.0, 0.0]  # in patches
    # the tightest axis first: if the grid limits a side, the other two make up for it
    axes = sorted(range(3), key=lambda a: grid[a] * patch[a] / stretch[a])
    for done, axis in enumerate(axes):
        unit = prod(stretch[a] / patch[a] for a in axes[done:])
        ideal[axis] = min(grid[axis], (volume / unit) ** (1 / (3 - done)) * stretch[axis] / patch[axis])
        volume /= ideal[axis]
    # the fewest patches first: the finer axes make up for its rounding; among equals any axis may be first
    sides, rounding = [1, 1, 1], 1.0
    for done, axis in enumerate(sorted(range(3), key=lambda a: (round(ideal[a], 6), form[a]))):
        sides[axis] = min(grid[axis], max(1, round(ideal[axis] * rounding ** (1 / (3 - done)))))
        rounding *= ideal[axis] / sides[axis]
    return sides[0], sides[1], sides[2]


def _shrunk(sides: Sides, grid: Sides, room: int) -> Sides:
    """Shorten a target's sides so that it has at most ``room`` tokens and no token is in it at all positions."""
    new = list(sides)
    # longer than half the grid along every axis, it would contain the grid's middle at any position
    if all(2 * s > n for s, n in zip(new, grid)):
        axis = min((a for a in range(3) if grid[a] > 1), key=lambda a: new[a] / (grid[a] // 2))
        new[axis] = grid[axis] // 2
    while prod(new) > room:
        new[new.index(max(new))] -= 1
    return new[0], new[1], new[2]


def _windows(values: Tensor, sides: Sides) -> Tensor:
    """Sum ``(B, H', W', D')`` over the block at each of its positions; exact for bool."""
    for axis, side in enumerate(sides, start=1):
        values = values.unfold(axis, side, 1).sum(-1)
    return values


def _draw_positions(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw positions ``(B, 3)`` in ``(B, h, w, d)`` by weight; never one of weight 0 while there are others."""
    # a race of exponential clocks: no running sums, whose rounding could admit a position of weight 0
    draws = torch.rand(weights.shape, generator=generator, device=generator.device)
    clocks = -torch.log1p(-draws).to(weights.device) / weights
    index = torch.where(weights > 0, clocks, float("inf")).flatten(1).argmin(1)
    w, d = weights.shape[2:]
    return torch.stack([index // (w * d), index // d % w, index % d], 1)


def _draw_blocks(weights: Tensor, sides: Sides, grid: Sides, generator: torch.Generator) -> Tensor:
    """Draw a block per sample, its first corner by weight ``(B, h, w, d)``: tokens ``(B, Nt)``."""
    steps = torch.tensor([grid[1] * grid[2], grid[2], 1], device=weights.device)
    inside = torch.cartesian_prod(*(torch.arange(side, device=weights.device) for side in sides))
    return (_draw_positions(weights, generator) * steps).sum(1, keepdim=True) + (inside * steps).sum(1)


def _distance(middle: Tensor, sides: Sides, grid: Sides) -> Tensor:
    """Compute the distance ``(B, H', W', D')`` of tokens from a block's ``middle`` ``(B, 3)``; 1 at its faces."""
    h, w, d = (
        (torch.arange(n, device=middle.device) - middle[:, axis, None]).abs() / (side / 2)
        for axis, (n, side) in enumerate(zip(grid, sides))
    )
    h, w, d = h[:, :, None, None], w[:, None, :, None], d[:, None, None, :]
    # the sum: a layer that is masked in part is masked from its middle outwards
    return torch.maximum(torch.maximum(h, w), d) + 1e-4 * (h + w + d - 3)


def _pick(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pick ``count`` of each row's True indices at random: ``(B, count)``, ascending."""
    keys = _uniform(among.shape, generator, among.device).masked_fill(~among, 2)
    return keys.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def _split(order: Tensor, count: int) -> MAEMasks:
    """Mask the ``count`` tokens of lowest ``order``; the others are visible."""
    tokens = order.argsort(dim=1, stable=True)
    return MAEMasks(tokens[:, count:].sort(dim=1).values, tokens[:, :count].sort(dim=1).values)
