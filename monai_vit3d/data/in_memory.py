"""Convert images in memory (arrays, tensors, MONAI's, nibabel's) to volumes, and labels to the same kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys

from .errors import ImageError
from .nifti.geometry import check_affine, oddities
from .nifti.images import is_nifti_image, labels_image, volume_from_image
from .nifti.voxels import to_float32
from .volume import Array, Grid, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volumes_from(image: Any, affine: Any = None, channels: int = 1) -> list[Volume]:
    """Take the channels of an image in memory, checked as those of a file.

    Args:
        image: (H, W, D) or (C, H, W, D) voxels as array or tensor with ``affine``, a MetaTensor, a NIfTI image of
            nibabel's, or a sequence of such images, one a channel.
        affine: (4, 4), voxel index to world, RAS+ mm; None for images that have their own.
        channels: how many are needed; a NIfTI image whose fourth axis has so many holds them all.

    Returns:
        One volume for each channel.

    Raises:
        ImageError: another kind of image or shape, no affine or two, or voxels or an affine that cannot be used.
    """
    if isinstance(image, list | tuple) and image:
        volumes = [volume for channel in image for volume in volumes_from(channel, affine)]
    elif is_nifti_image(image):
        _check_one_affine(affine)
        is_4d = channels > 1 and image.shape[3:] == (channels,)
        images = [image.slicer[..., i] for i in range(channels)] if is_4d else [image]
        volumes = [volume_from_image(one) for one in images]
    elif isinstance(image, MetaTensor):
        _check_one_affine(affine)
        own = image.affine.cpu().numpy().astype(np.float64)
        is_lps = image.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS
        volumes = _from_array(image.as_tensor(), _LPS_TO_RAS @ own if is_lps else own)
    elif isinstance(image, np.ndarray | torch.Tensor):
        if affine is None:
            raise ImageError("image: voxels without an affine. Give affine=, voxel index to world in RAS+ mm, (4, 4).")
        volumes = _from_array(image, np.asarray(affine, np.float64))
    else:
        raise ImageError(
            f"image: a {type(image).__name__}; expected an array, a tensor, a MetaTensor or a NIfTI image. Give "
            "paths of files to predict_folder."
        )
    if len(volumes) == 1:
        return volumes
    return [replace(volume, path=Path(f"{volume.path}[{i}]")) for i, volume in enumerate(volumes)]  # told apart by path


def labels_like(image: Any, labels: Array, grid: Grid) -> Any:
    """Give labels the kind of the image that they were made from.

    Args:
        image: as for :func:`volumes_from`.
        labels: (H, W, D) integers, or (C, H, W, D) masks.
        grid: of the image.

    Returns:
        A NIfTI image, a MetaTensor with the image's metadata (with a first axis of 1 if the image has channels), a
        tensor, or ``labels`` as they are.
    """
    if isinstance(image, list | tuple):
        return labels_like(image[0], labels, grid)
    if is_nifti_image(image):
        return labels_image(labels, grid)
    if isinstance(image, MetaTensor):
        values = torch.from_numpy(labels)
        values = values[None] if values.ndim < image.ndim else values
        return MetaTensor(values, meta=image.meta, applied_operations=image.applied_operations)
    return torch.from_numpy(labels) if isinstance(image, torch.Tensor) else labels


def _check_one_affine(affine: Any) -> None:
    if affine is not None:
        raise ImageError("image: affine= and an image with an affine of its own; expected one. Leave affine= out.")


def _from_array(voxels: Array | torch.Tensor, affine: Array) -> list[Volume]:
    path = Path("image")
    if isinstance(voxels, torch.Tensor):
        voxels = voxels.detach().cpu()
        voxels = (voxels.float() if voxels.dtype is torch.bfloat16 else voxels).numpy()
    if voxels.ndim not in (3, 4) or not voxels.size or voxels.dtype.kind not in "biuf":
        raise ImageError(
            f"{path}: {voxels.dtype} of shape {voxels.shape}; expected (H, W, D) or (C, H, W, D) real numbers, one "
            "volume without a batch axis."
        )
    if affine.shape != (4, 4):
        raise ImageError(f"{path}: affine of shape {affine.shape}; expected (4, 4), voxel index to world in RAS+ mm.")
    check_affine(affine, path)
    height, width, depth = voxels.shape[-3:]
    grid = Grid((height, width, depth), affine)
    volumes = []
    for channel in voxels.reshape(-1, *grid.shape):
        values, warnings = to_float32(channel, 1.0, 0.0, path)
        volumes.append(Volume(path, values, grid, (*oddities(grid), *warnings)))
    return volumes
