"""Convert nibabel's images to volumes, with the checks for files, and labels to nibabel's images."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

import nibabel as nib
import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Array, Grid, Volume

from .geometry import check_affine, oddities, read_geometry
from .header import NiftiHeader, check_pixdim, check_volume_index, image_shape
from .voxels import to_float32
from .writer import label_dtype, labels_header


def is_nifti_image(image: object) -> TypeGuard[nib.Nifti1Image]:
    """Return whether something is a NIfTI-1 or NIfTI-2 image of nibabel's."""
    return isinstance(image, nib.Nifti1Image)


def volume_from_image(image: nib.Nifti1Image) -> Volume:
    """Take voxels and geometry from a 3D image of nibabel's.

    Args:
        image: NIfTI-1 or NIfTI-2, of real numbers.

    Returns:
        Finite float32 voxels (H, W, D), the grid, and a sentence for each oddity; as of the same image in a file.

    Raises:
        ImageError: not one 3D image of real numbers, or an affine that is not usable.
    """
    path, nifti = Path(image.get_filename() or "image"), image.header
    shape, trailing, volumes = image_shape(nifti, path)
    check_volume_index(None, volumes, shape, path)
    check_pixdim(nifti, path)
    stored = np.asanyarray(image.dataobj)
    if stored.dtype.kind not in "biuf":
        raise ImageError(f"{path}: voxels of type {stored.dtype}; expected real numbers. Convert the image first.")
    version = 2 if isinstance(nifti, nib.Nifti2Header) else 1
    header = NiftiHeader(nifti, version, shape, trailing, stored.dtype, 0, stored.nbytes, 1.0, 0.0)
    grid, warnings = read_geometry(header)
    check_affine(grid.affine_mm, path)
    voxels, voxel_warnings = to_float32(stored.reshape(shape), 1.0, 0.0, path)
    return Volume(path, voxels, grid, (*warnings, *oddities(grid), *voxel_warnings))


def labels_image(labels: Array, grid: Grid) -> nib.Nifti1Image:
    """Make an image of labels, with the header that :func:`write_labels` writes.

    Args:
        labels: (H, W, D), or (C, H, W, D) masks, which become the fourth axis.
        grid: of the image that they were made from.
    """
    header = labels_header(labels, grid)
    values = np.moveaxis(labels, 0, 3) if labels.ndim == 4 else labels.reshape(header.get_data_shape())
    header.set_data_dtype(label_dtype(labels, "labels"))
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(values.astype(header.get_data_dtype(), copy=False), header.get_best_affine(), header)
