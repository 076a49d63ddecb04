"""Similarity: known maps come back, also with a pair that is far off."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from monai_vit3d.transforms.similarity import fit_similarity, turn_degrees
from tests.helpers import randn


@given(seed=st.integers(0, 10**6), scale=st.floats(0.2, 5), angle=st.floats(0, 180))
def test_a_known_map_comes_back(seed, scale, angle):
    points = 30 * randn(12, 3, seed=seed)
    axis = torch.nn.functional.normalize(randn(3, seed=seed + 1), dim=0).numpy()
    rotation = torch.from_numpy(Rotation.from_rotvec(angle * axis, degrees=True).as_matrix())
    shift = 50 * randn(3, seed=seed + 2)
    similarity, residuals = fit_similarity(points, scale * points @ rotation.T + shift, tolerance=1.0)
    assert similarity.scale == pytest.approx(scale, rel=1e-9)
    torch.testing.assert_close(similarity.rotation, rotation, rtol=0, atol=1e-9)
    torch.testing.assert_close(similarity.shift, shift, rtol=0, atol=1e-6)
    assert turn_degrees(similarity.rotation) == pytest.approx(angle, abs=1e-4)
    assert residuals.max() < 1e-6


def test_a_pair_that_is_far_off_counts_less():
    points = 30 * randn(12, 3)
    targets = points.clone()
    targets[0] += 60
    similarity, residuals = fit_similarity(points, targets, tolerance=2.0)
    others = (similarity(points) - points).norm(dim=1)[1:]
    plain, _ = fit_similarity(points, targets, tolerance=1e9)
    assert others.max() < 2
    assert (plain(points) - points).norm(dim=1)[1:].max() > 5
    assert residuals[0] > 50


def test_a_mirror_image_is_no_rotation():
    points = 30 * randn(12, 3)
    similarity, residuals = fit_similarity(points, points * torch.tensor([-1.0, 1.0, 1.0]), tolerance=1.0)
    assert torch.linalg.det(similarity.rotation).item() == pytest.approx(1)
    assert residuals.max() > 10


@pytest.mark.parametrize("points", [torch.zeros(2, 3), torch.zeros(4, 2)], ids=["two", "flat"])
def test_too_few_points(points):
    with pytest.raises(ValueError, match="at least 3"):
        fit_similarity(points, torch.zeros(2, 3), tolerance=1.0)
