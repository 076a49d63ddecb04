"""Phantoms: small volumes with two structures, written as NIfTI in the Decathlon's layout."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "hippocampus_segmentation"


def phantom(seed, shape=(34, 44, 30)):
    """A noisy ellipsoid, its front half brighter; image int16 and label uint8 on a rotated, flipped grid."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.1, 0.1, size=(3, 1, 1, 1))
    inside = (((grid - centre) / np.array([0.4, 0.6, 0.4]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1
    label = inside.astype(np.uint8) + (inside & (grid[1] < centre[1]))
    image = (200 * label + 100 + 15 * rng.standard_normal(shape)).astype(np.int16)
    angle = rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.1, 1.0, 0.9])  # the first axis runs from left to right: not RAS
    affine[:3, 3] = rng.uniform(-30, 30, size=3)
    return nib.Nifti1Image(image, affine), nib.Nifti1Image(label, affine)


@pytest.fixture(scope="session")
def phantom_task(tmp_path_factory):
    """A Decathlon-like task of 12 phantoms with its split file: ``(dataset_dir, split_file)``."""
    root = tmp_path_factory.mktemp("task")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    cases = [f"phantom_{i:02d}" for i in range(12)]
    for i, case in enumerate(cases):
        image, label = phantom(i)
        image.to_filename(root / "imagesTr" / f"{case}.nii.gz")
        label.to_filename(root / "labelsTr" / f"{case}.nii.gz")
    split = root / "split.json"
    split.write_text(json.dumps({"training": cases[:8], "validation": cases[8:10], "test": cases[10:]}))
    return root, split


@pytest.fixture(scope="session")
def decathlon_hippocampus():
    """The folder of MSD Task04; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "Task04_Hippocampus"
    if not (folder / "imagesTr").is_dir():
        pytest.skip("MSD Task04_Hippocampus is not under MONAI_DATA_DIRECTORY (MONAI's DecathlonDataset fetches it)")
    return folder
