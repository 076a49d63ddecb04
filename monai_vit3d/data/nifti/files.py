"""Finding NIfTI files, cutting boxes out of them, and measuring labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import DatasetError, ImageError


def nifti_files(folder: str | Path) -> list[str]:
    """All NIfTI files of a folder and its subfolders, sorted.

    Args:
        folder: the folder to look through.

    Raises:
        DatasetError: no such folder, or no NIfTI file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder. Give a folder that holds .nii or .nii.gz files.")
    files = sorted(str(p) for p in root.rglob("*") if p.is_file() and p.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise DatasetError(f"{root}: no .nii or .nii.gz file in this folder or below. Give a folder that holds some.")
    return files


def cut_box(
    image: nib.spatialimages.SpatialImage, centre_mm: Sequence[float], size_mm: Sequence[float]
) -> nib.spatialimages.SpatialImage:
    """The part of a volume around a point of world space, with the affine that keeps it in its place.

    Args:
        image: a 3D image whose axes run along the world's.
        centre_mm: RAS+ coordinates of the centre, in mm.
        size_mm: extent along the image's own axes, in mm.

    Raises:
        ImageError: not 3D, or the box reaches out of the image.
    """
    if image.ndim != 3:
        raise ImageError(f"{image.get_filename() or 'image'}: shape {image.shape}; one 3D volume is needed.")
    centre = np.linalg.inv(image.affine) @ np.append(np.asarray(centre_mm, float), 1.0)
    half = np.asarray(size_mm, float) / nib.affines.voxel_sizes(image.affine) / 2
    low = np.round(centre[:3] - half).astype(int)
    high = low + np.round(2 * half).astype(int)
    if (low < 0).any() or (high > image.shape).any():
        raise ImageError(
            f"{image.get_filename() or 'image'}: voxels {low.tolist()} to {high.tolist()} are needed, the image has "
            f"{list(image.shape)}. Choose a box inside the image."
        )
    box = image.slicer[tuple(slice(a, b) for a, b in zip(low, high))]
    voxels = np.asanyarray(box.dataobj)
    # scaled integers come as floats: stored as such they stay as they are, as integers they would be rounded anew
    box.set_data_dtype(np.float32 if voxels.dtype.kind == "f" else voxels.dtype)
    return box


def label_volumes_ml(path: str | Path, names: dict[int, str]) -> dict[str, float]:
    """Volume of each label of a label file, in millilitres.

    Args:
        path: a NIfTI label file.
        names: label value to name.
    """
    image = nib.load(path)
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    labels = np.asanyarray(image.dataobj)
    return {name: float((labels == value).sum() * voxel_ml) for value, name in names.items()}
