"""From 2D to 3D: patch kernels and learned positions that gain an axis. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers import resample_patch_kernel, to_3tuple
from monai_vit3d.layers.adapt_channels import adapt_channels

INFLATE_KERNELS = ("mean", "center", "trilinear")
INFLATE_POSITIONS = ("repeat", "factored")


def inflate_kernel(weight: Tensor, depth: int, mode: str = "mean", axis: int = 2) -> Tensor:
    """Inflate a 2D patch kernel along a third axis; its sum along that axis is the 2D kernel.

    So a volume that is constant along the slice axis gives the tokens that its slice gives in 2D.

    Args:
        weight: ``(E, C, h, w)``.
        depth: voxels along the new axis, d.
        mode: ``"mean"`` spreads the kernel evenly (Carreira and Zisserman 2017, arXiv:1705.07750, section 2.1);
            ``"center"`` puts it into plane ``d // 2`` and zeros elsewhere (Arnab et al. 2021, arXiv:2103.15691,
            section 3.4); ``"trilinear"`` lets it fall linearly from the middle to 0 just outside the patch.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``; h and w lie along the other two, in order.

    Returns:
        ``(E, C, h, w, d)`` for ``axis=2``, ``(E, C, h, d, w)`` for 1, ``(E, C, d, h, w)`` for 0, in the dtype of
        ``weight``.

    Raises:
        UsageError: unknown mode or axis, or no positive depth.
        WeightsError: not a 2D kernel.
    """
    _check_choice("kernel", mode, INFLATE_KERNELS)
    _check_axis(axis)
    if weight.dim() != 4:
        raise WeightsError(f"patch kernel of shape {tuple(weight.shape)}; expected a 2D kernel (E, C, h, w).")
    if depth < 1:
        raise UsageError(f"depth={depth}: the patch needs 1 voxel or more along the slice axis.")
    shares = _shares(depth, mode).to(weight.device)
    shares = shares.reshape([depth if i == axis else 1 for i in range(3)])
    return (weight.double().unsqueeze(2 + axis) * shares).to(weight.dtype)


def _shares(depth: int, mode: str) -> Tensor:
    """Return the share of the kernel that each plane gets; the shares sum to 1."""
    place = torch.arange(depth, dtype=torch.float64)
    if mode == "center":
        return (place == depth // 2).double()
    if mode == "mean":
        return torch.full((depth,), 1.0 / depth, dtype=torch.float64)
    hat = 1 - (2 * place - (depth - 1)).abs() / (depth + 1)
    return hat / hat.sum()


def fit_kernel(
    weight: Tensor, patch_size: int | Sequence[int], in_chans: int, mode: str = "mean", axis: int = 2
) -> Tensor:
    """Fit a 2D or 3D patch kernel to a 3D patch: adapt channels, inflate if 2D, resize by the pseudo-inverse.

    Args:
        weight: ``(E, C, h, w)``, or ``(E, C, h, w, d)``, which has its slice axis already.
        patch_size: the patch that is needed, in ``(H, W, D)``.
        in_chans: the channels that are needed.
        mode: as for :func:`inflate_kernel`.
        axis: as for :func:`inflate_kernel`.

    Returns:
        ``(E, in_chans, h', w', d')`` in the dtype of ``weight``.

    Raises:
        UsageError: unknown mode or axis.
        WeightsError: neither a 2D nor a 3D kernel.
    """
    patch = to_3tuple(patch_size, "patch_size")
    weight = adapt_channels(weight, in_chans)
    if weight.dim() != 5:
        _check_axis(axis)
        weight = inflate_kernel(weight, patch[axis], mode, axis)
    return resample_patch_kernel(weight, patch)


def inflate_positions(
    pos: Tensor, grid2d: Sequence[int], grid3d: Sequence[int], prefix: int, mode: str = "repeat", axis: int = 2
) -> Tensor:
    """Inflate learned 2D positions to a 3D grid; prefix tokens stay, and no position is divided by the depth.

    In the plane they are resampled as timm does it: bicubic, antialiased, in float32.

    Args:
        pos: ``(1, P + N, E)``, P prefix tokens before the N patches of ``grid2d``, row by row.
        grid2d: patches along the image's two axes.
        grid3d: patches along ``(H, W, D)``.
        prefix: P.
        mode: ``"repeat"`` gives every slice the 2D positions; ``"factored"`` adds a term for the slice: the mean of
            the 2D table's row and column profiles, resampled linearly to the slices and centred, so that the
            positions' mean over slices is the 2D table and one slice has just that.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``; the image's axes lie along the other two, in order.

    Returns:
        ``(1, P + H' * W' * D', E)`` in the dtype of ``pos``, D fastest, as the tokens are.

    Raises:
        UsageError: unknown mode or axis.
        WeightsError: ``pos`` has not P + N rows.
    """
    _check_choice("positions", mode, INFLATE_POSITIONS)
    _check_axis(axis)
    if pos.dim() != 3 or pos.shape[1] != prefix + prod(grid2d):
        raise WeightsError(
            f"pos_embed is {tuple(pos.shape)}, but {prefix} prefix tokens and a grid of {tuple(grid2d)} patches need "
            f"{prefix + prod(grid2d)} positions. Name the grid that the positions were learned on."
        )
    plane = [n for i, n in enumerate(grid3d) if i != axis]
    pos = resample_abs_pos_embed(pos, plane, list(grid2d), prefix)
    patches = pos[:, prefix:].reshape(plane[0], plane[1], -1)
    table = patches.unsqueeze(axis)
    if mode == "factored":
        shape = [grid3d[axis] if i == axis else 1 for i in range(3)]
        table = table + _slice_profile(patches, grid3d[axis]).reshape(*shape, -1)
    table = table.expand(grid3d[0], grid3d[1], grid3d[2], -1).flatten(0, 2)
    return torch.cat([pos[:, :prefix], table[None]], dim=1)


def _slice_profile(patches: Tensor, slices: int) -> Tensor:
    """Return a term ``(slices, E)`` of mean 0, from the profiles of positions ``(h, w, E)`` along their two axes."""
    work = patches.float() if patches.dtype in (torch.float16, torch.bfloat16) else patches
    along = [F.interpolate(work.mean(1 - i).T[None], size=slices, mode="linear")[0].T for i in (0, 1)]
    profile = (along[0] + along[1]) / 2
    return (profile - profile.mean(0)).to(patches.dtype)


def check_how(kernel: str = "mean", positions: str = "repeat", axis: int = 2) -> None:
    """Refuse unknown words before there are weights to inflate.

    Args:
        kernel: as the mode of :func:`inflate_kernel`.
        positions: as the mode of :func:`inflate_positions`.
        axis: the slice axis.

    Raises:
        UsageError: one is unknown.
    """
    _check_choice("kernel", kernel, INFLATE_KERNELS)
    _check_choice("positions", positions, INFLATE_POSITIONS)
    _check_axis(axis)


def _check_choice(argument: str, mode: str, known: tuple[str, ...]) -> None:
    if mode not in known:
        raise UsageError(f"{argument}={mode!r}; expected one of {', '.join(map(repr, known))}.")


def _check_axis(axis: int) -> None:
    if axis not in (0, 1, 2):
        raise UsageError(f"axis={axis!r}: the slice axis is 0, 1 or 2 of (H, W, D).")
