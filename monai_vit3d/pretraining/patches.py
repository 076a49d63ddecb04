"""Cut volumes into rows of patches, and put them together again."""

from __future__ import annotations

from math import prod

from torch import Tensor

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers.pos_embed import GridShape


def patchify(x: Tensor, patch: GridShape) -> Tensor:
    """Cut volumes into patches; :func:`unpatchify` is the inverse.

    Args:
        x: ``(B, C, H, W, D)``.
        patch: the patch ``(h, w, d)``, in voxels.

    Returns:
        ``(B, N, C * h * w * d)``: patches with D fastest, as the networks order tokens; a patch's values in the order
        of a convolution's kernel.

    Raises:
        UsageError: not a batch of volumes, or a size that the patch does not divide.
    """
    if x.dim() != 5 or any(n % p for n, p in zip(x.shape[2:], patch)):
        raise UsageError(
            f"input of shape {tuple(x.shape)}, patch {tuple(patch)}; expected volumes (B, C, H, W, D) of whole "
            "patches. Crop or pad them to a multiple of the patch."
        )
    (B, C), (h, w, d) = x.shape[:2], patch
    H, W, D = (n // p for n, p in zip(x.shape[2:], patch))
    x = x.reshape(B, C, H, h, W, w, D, d).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(B, H * W * D, C * h * w * d)


def unpatchify(patches: Tensor, patch: GridShape, grid: GridShape) -> Tensor:
    """Put patches together again.

    Args:
        patches: ``(B, N, C * h * w * d)``, as :func:`patchify` gives them.
        patch: the patch ``(h, w, d)``, in voxels.
        grid: patches ``(H', W', D')`` along each axis; their product is N.

    Returns:
        ``(B, C, H' * h, W' * w, D' * d)``.

    Raises:
        UsageError: patches of another count or size.
    """
    if patches.dim() != 3 or patches.shape[1] != prod(grid) or patches.shape[2] % prod(patch):
        raise UsageError(
            f"patches of shape {tuple(patches.shape)}; expected (B, N, C * {prod(patch)}) with N={prod(grid)} for "
            f"patch {tuple(patch)} on a grid of {tuple(grid)}: pass the patch and grid they were cut with."
        )
    B, C = patches.shape[0], patches.shape[2] // prod(patch)
    (H, W, D), (h, w, d) = grid, patch
    x = patches.reshape(B, H, W, D, C, h, w, d).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(B, C, H * h, W * w, D * d)
