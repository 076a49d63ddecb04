"""Find NIfTI files, cut boxes out of them, and measure labels."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_vit3d.data.confinement import check_confined
from monai_vit3d.data.earlier_outputs import written_files
from monai_vit3d.data.errors import DatasetError, ImageError
from monai_vit3d.data.label_names import is_label_folder, is_label_name

logger = logging.getLogger(__name__)


def nifti_files(folder: str | Path, include_labels: bool = False) -> list[str]:
    """List all NIfTI images of a folder and its subfolders, sorted, as ``vit3d predict`` reads them.

    Hidden files and folders (macOS' ``._name.nii.gz``), outputs of earlier runs that a run.json names, and labels by
    their name or folder (``labelsTr``, ``*_mask``) are left out; their number is logged.

    Args:
        folder: the folder to search.
        include_labels: whether labels and outputs of earlier runs count as images.

    Raises:
        DatasetError: no such folder, or no image in it.
    """
    root = Path(folder)
    check_confined(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder. Give a folder that holds .nii or .nii.gz files.")
    paths = [p for p in root.rglob("*") if p.is_file() and p.name.lower().endswith((".nii", ".nii.gz"))]
    written = set() if include_labels else _written(root)
    kinds = {p: _no_image(p, root, written, include_labels) for p in paths}
    files = sorted(str(p) for p, kind in kinds.items() if not kind)
    counts = Counter(kind for kind in kinds.values() if kind)
    left_out = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    if not files:
        problem = f"no .nii or .nii.gz image in this folder or below{f' ({left_out})' if left_out else ''}"
        raise DatasetError(f"{root}: {problem}. Give a folder that holds some.")
    if left_out:
        logger.warning("%s: passed over %s", root, left_out)
    return files


def _written(root: Path) -> set[str]:
    """List all files that earlier runs wrote in a folder or below."""
    places = [(os.path.realpath(folder), names) for folder, _, names in os.walk(root)]
    return {path for folder, names in places for path in written_files(folder, names)}


def _no_image(path: Path, root: Path, written: set[str], include_labels: bool) -> str:
    """Say why a NIfTI file is not the image of a case; empty if it is."""
    below = path.relative_to(root).parts
    if any(part.startswith(".") for part in below):
        return "hidden"
    if include_labels:
        return ""
    if os.path.join(os.path.realpath(path.parent), path.name) in written:
        return "written by an earlier run"
    stem = path.name.lower().removesuffix(".gz").removesuffix(".nii")
    is_label = is_label_name(path.name[: len(stem)]) or is_label_folder((root.resolve().name, *below[:-1]))
    return "labels, masks or maps by name or folder" if is_label else ""


def cut_box(
    image: nib.spatialimages.SpatialImage, centre_mm: Sequence[float], size_mm: Sequence[float]
) -> nib.spatialimages.SpatialImage:
    """Cut the part of a volume around a point of world space, with the affine that keeps it in its place.

    Args:
        image: a 3D image whose axes run along the world's.
        centre_mm: RAS+ coordinates of the centre, in mm.
        size_mm: extent along the image's own axes, in mm.

    Raises:
        ImageError: not 3D, or the box reaches out of the image.
    """
    if image.ndim != 3:
        raise ImageError(f"{image.get_filename() or 'image'}: shape {image.shape}; expected one 3D volume.")
    centre = np.linalg.inv(image.affine) @ np.append(np.asarray(centre_mm, float), 1.0)
    half = np.asarray(size_mm, float) / nib.affines.voxel_sizes(image.affine) / 2
    low = np.round(centre[:3] - half).astype(int)
    high = low + np.round(2 * half).astype(int)
    if (low < 0).any() or (high > image.shape).any():
        raise ImageError(
            f"{image.get_filename() or 'image'}: expected voxels {low.tolist()} to {high.tolist()}, the image has "
            f"{list(image.shape)}. Choose a box inside the image."
        )
    box = image.slicer[tuple(slice(a, b) for a, b in zip(low, high))]
    voxels = np.asanyarray(box.dataobj)
    # scaled integers come as floats: stored as such they stay as they are, as integers they would be rounded anew
    box.set_data_dtype(np.float32 if voxels.dtype.kind == "f" else voxels.dtype)
    return box


def label_volumes_ml(path: str | Path, names: dict[int, str]) -> dict[str, float]:
    """Measure the volume of each label of a label file, in millilitres.

    Args:
        path: a NIfTI label file.
        names: label value to name.
    """
    image: Any = nib.load(path)
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    labels = np.asanyarray(image.dataobj)
    return {name: float((labels == value).sum() * voxel_ml) for value, name in names.items()}
