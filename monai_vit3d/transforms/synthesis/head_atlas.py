"""Average label maps of upright heads to an atlas: how probable each structure is at each place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor
from torch.nn.functional import avg_pool3d

from monai_vit3d.data.nifti.writer import write_map
from monai_vit3d.data.volume import Grid

from .head_labels import BRAIN_STRUCTURES, mirror_lookup, structure_lookup


def mean_atlas(
    label_maps: Iterable[Tensor],
    structures: Mapping[str, Sequence[int]] = BRAIN_STRUCTURES,
    coarser: int = 4,
    blur_voxels: float = 5.0,
) -> Tensor:
    """Average the structures of heads, each with its mirror image.

    Args:
        label_maps: (1, H, W, D) label values, upright and of one size (:class:`UprightHeadd`).
        structures: name and label values of each class.
        coarser: voxels of a label map along an axis of a voxel of the atlas.
        blur_voxels: sigma in the label maps' voxels of a Gaussian; a localizer lays heads upright less exactly.

    Returns:
        (1 + structures, H / coarser, …) probabilities of the background and the structures; they sum to 1, and to
        less at the border, where the blur reaches beyond the maps.
    """
    lookup, mirrored = torch.from_numpy(structure_lookup(structures)), torch.from_numpy(mirror_lookup()).long()
    total: Tensor | float = 0.0
    for labels in label_maps:
        values = torch.as_tensor(np.asarray(labels))[0].long()
        for head in (values, mirrored[values.flip(0)]):
            classes = lookup[head]
            shares = [avg_pool3d((classes == k).float()[None], coarser)[0] for k in range(1 + len(structures))]
            total = total + torch.stack(shares)
    total = torch.as_tensor(total)
    return torch.as_tensor(GaussianFilter(3, blur_voxels / coarser)((total / total.sum(0))[None])[0])


def save_atlas(probabilities: Tensor, path: str | os.PathLike, voxel_mm: float, centre_mm: Sequence[float]) -> None:
    """Write an atlas as NIfTI, (H, W, D, classes), its probabilities rounded to 255ths, which compress well.

    Args:
        probabilities: (K, H, W, D).
        path: of the file, which ends in ``.nii`` or ``.nii.gz``.
        voxel_mm: of its voxels.
        centre_mm: where its middle lies in the template.
    """
    _, height, width, depth = probabilities.shape
    shape = (height, width, depth)
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = np.array(centre_mm) - voxel_mm * (np.array(shape) - 1) / 2
    write_map((probabilities * 255).round().div(255).numpy(), Grid(shape, affine), str(path))
