"""A state dict with the patch kernel and the positions that a 3D network needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers import resample_pos_embed
from monai_vit3d.layers.adapt_channels import adapt_channels
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights.inflate import fit_kernel, inflate_positions

from .shapes import KERNEL, POS, even_side

logger = logging.getLogger(__name__)


def checkpoint_filter_fn(
    state_dict: Mapping[str, Any],
    model: VisionTransformer3D,
    *,
    kernel: str = "mean",
    positions: str = "repeat",
    axis: int = 2,
    grid: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Fit a state dict's patch kernel and positions to a 3D network, as timm's functions of this name do in 2D.

    Args:
        state_dict: of a timm VisionTransformer, or of a :class:`VisionTransformer3D` with another patch, grid or
            number of channels; keys are kept. A checkpoint that has it as ``"model"`` or ``"state_dict"`` will do.
        model: the network that the weights are for.
        kernel: how a 2D kernel is inflated, ``"mean"``, ``"center"`` or ``"trilinear"``.
        positions: how 2D positions are inflated, ``"repeat"`` or ``"factored"``.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``.
        grid: patches along the axes that the positions were learned on. None takes the network's own (of a 2D
            kernel: its plane) if it has as many patches; else a square, of a 3D kernel a cube, is assumed, and a
            warning is logged: no tensor shows the grid.

    Returns:
        A new dict; tensors that need no change are the same objects. Half precision becomes float32 where changed.

    Raises:
        UsageError: unknown mode or axis.
        WeightsError: no kernel, or positions that do not fit the grid.
    """
    for wrapping in ("model", "state_dict"):  # which timm's function of this name takes off, too
        inner = state_dict.get(wrapping)
        state_dict = inner if isinstance(inner, Mapping) else state_dict
    weight = state_dict.get(KERNEL)
    if weight is None or weight.dim() not in (4, 5):
        came = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
        raise WeightsError(f"{KERNEL} is {came}; expected one of shape (E, C, h, w) or (E, C, h, w, d).")
    fitted = dict(state_dict)
    patch = tuple(model.patch_embed.patch_size)
    chans = int(model.in_chans)
    # the last layer of a stem does not see patches
    sees_patches = tuple(getattr(getattr(model.patch_embed, "proj", None), "kernel_size", patch)) == patch
    if weight.dim() == 4 or (sees_patches and tuple(weight.shape[1:]) != (chans, *patch)):
        fitted[KERNEL] = fit_kernel(_at_least_float32(weight), patch, chans, kernel, axis)
    for key in (f"patch_embed.{name}" for name in getattr(model.patch_embed, "image_kernels", ())):
        if not sees_patches and key in fitted and fitted[key].dim() == 5:  # of a stem
            fitted[key] = adapt_channels(fitted[key], chans)
    pos, own = fitted.get(POS), model.pos_embed
    if pos is not None and isinstance(own, nn.Parameter):
        prefix = own.shape[1] - model.num_patches
        old = _grid(pos.shape[1] - prefix, weight.dim() - 2, tuple(model.grid_size), axis, grid)
        if assumed_grid(state_dict, model, axis=axis, grid=grid):
            logger.warning("pos_embed: grid %s assumed; pass grid= if it was another", "x".join(map(str, old)))
        if len(old) == 3:
            fitted[POS] = _resampled(pos, old, tuple(model.grid_size), prefix)
        else:
            fitted[POS] = inflate_positions(_at_least_float32(pos), old, model.grid_size, prefix, positions, axis)
    return fitted


def assumed_grid(
    state_dict: Mapping[str, Tensor],
    model: VisionTransformer3D,
    *,
    axis: int = 2,
    grid: Sequence[int] | None = None,
    **how: Any,
) -> str:
    """Return what :func:`checkpoint_filter_fn` assumes of the grid, as ``"grid 4x4x4"``; empty if it assumes nothing.

    A grid of the network's own is assumed, too, where a square or cube has as many patches.
    """
    pos, own = state_dict.get(POS), model.pos_embed
    if grid is not None or pos is None or not isinstance(own, nn.Parameter):
        return ""
    axes, prefix = state_dict[KERNEL].dim() - 2, own.shape[1] - model.num_patches
    count = pos.shape[1] - prefix
    old = _grid(count, axes, tuple(model.grid_size), axis, None)
    even = (even_side(count, axes),) * axes
    certain = old == _plane(tuple(model.grid_size), axes, axis) and (old == even or not all(even))
    return "" if certain else f"grid {'x'.join(map(str, old))}"


def _plane(own: tuple[int, ...], axes: int, axis: int) -> tuple[int, ...]:
    return own if axes == 3 else tuple(n for i, n in enumerate(own) if i != axis)


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _grid(count: int, axes: int, own: tuple[int, ...], axis: int, grid: Sequence[int] | None) -> tuple[int, ...]:
    """Return the grid of ``count`` learned positions: the given one, the network's own, or a square or cube."""
    plane = _plane(own, axes, axis)
    if grid is None and count == prod(plane):
        return plane
    old = (even_side(count, axes),) * axes if grid is None else tuple(grid)
    if len(old) != axes or prod(old) != count or count < 1:
        raise WeightsError(
            f"pos_embed has positions for {count} patches, grid={grid} came; expected {axes} numbers with that "
            "product. Name the grid that they were learned on."
        )
    return old


def _resampled(pos: Tensor, old: tuple[int, ...], new: tuple[int, ...], prefix: int) -> Tensor:
    if old == new:
        return pos
    return resample_pos_embed(pos, (old[0], old[1], old[2]), (new[0], new[1], new[2]), prefix)
