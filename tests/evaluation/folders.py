"""Folders of label maps for the tests of evaluation."""

from pathlib import Path

import nibabel as nib
import numpy as np

AFFINE = np.diag([1.0, 1.0, 2.5, 1.0])
SHAPE = (20, 18, 10)


def write_map(labels, path, affine=AFFINE):
    """Write a label map; its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def organ(shift=0):
    """A liver of label 1 with a tumour of label 2, moved along the first axis."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3 + shift : 11 + shift, 4:12, 2:8] = 1
    labels[5 + shift : 8 + shift, 6:9, 3:6] = 2
    return labels


def write_folders(root, shifts=(0, 1, 2, 3)):
    """Write ``labels`` and ``pred``, moved by so many voxels, and ``images``; the root."""
    for i, shift in enumerate(shifts):
        write_map(organ(), root / "labels" / f"case_{i}.nii.gz")
        write_map(organ(shift), root / "pred" / f"case_{i}_seg.nii.gz")
        image = (40.0 * organ() + np.random.default_rng(i).normal(100, 5, SHAPE)).astype(np.float32)
        write_map(image, root / "images" / f"case_{i}_0000.nii.gz")
    return root
