"""What a case is said to need in memory against what the kernel saw it take."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.data.nifti import read_nifti_grid
from monai_vit3d.pipeline.memory import network_shape
from tests.helpers import HIPPOCAMPUS, ROOT, run_warm

BENCHMARK = ROOT / "benchmarks" / "memory.py"


def write(path: Path, shape: tuple[int, ...], degrees: int) -> Path:
    turn = nib.eulerangles.euler2mat(z=np.radians(degrees))
    values = np.random.default_rng(0).integers(0, 1000, shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(values, nib.affines.from_matvec(turn @ np.diag([0.8, 0.8, 2.0]))), path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize(("order", "degrees"), [("ours", 25), ("first", 0)])
def test_the_estimate_is_enough_and_not_far_too_much(tmp_path, order, degrees):
    scan, tiny = write(tmp_path / "scan.nii", (200, 150, 80), degrees), write(tmp_path / "tiny.nii", (40,) * 3, degrees)
    code, out = run_warm(BENCHMARK, "--point", order, scan, tiny, degrees, 14)
    assert code == 0, out
    taken, expected = json.loads(out.splitlines()[-1])
    assert taken <= expected <= 3 * taken


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(HIPPOCAMPUS, "cpu")


@settings(max_examples=8)
@given(degrees=st.integers(-90, 90), diagonal=st.booleans())
def test_the_shape_of_a_turned_grid_is_known(bundle, tmp_path_factory, degrees, diagonal):
    path = write(tmp_path_factory.mktemp("turned") / "scan.nii", (30, 20, 10), degrees)
    spacing = next(step for step in bundle.preprocessing.steps if hasattr(step, "spacing_transform"))
    spacing.spacing_transform.diagonal = diagonal
    image = MetaTensor(torch.zeros(1, 30, 20, 10), affine=torch.as_tensor(nib.load(path).affine))
    data = {"image": image}
    for step in bundle.preprocessing.steps[1 : bundle.preprocessing.steps.index(spacing) + 1]:
        data = step(data)
    known = network_shape(read_nifti_grid(path), bundle)
    assert np.abs(np.subtract(known, data["image"].shape[1:])).max() <= 1  # MONAI rounds, the estimate rounds up
