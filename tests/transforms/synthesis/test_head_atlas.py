"""The mean of label maps: shares of voxels, with mirror images, that sum to one."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from monai_vit3d.transforms import BRAIN_STRUCTURES, mean_atlas

CLASS = {name: number for number, name in enumerate(BRAIN_STRUCTURES, 1)}


def a_map(hippocampus_at):
    labels = torch.zeros(1, 16, 8, 8, dtype=torch.int16)
    labels[0, :8], labels[0, 8:] = 2, 41  # white matter, left and right
    labels[0, hippocampus_at : hippocampus_at + 2, 2:4, 2:4] = 17
    return labels


def test_shares_without_blur():
    atlas = mean_atlas([a_map(2), a_map(4)], coarser=2, blur_voxels=0.01)
    assert atlas.shape == (1 + len(BRAIN_STRUCTURES), 8, 4, 4)
    torch.testing.assert_close(atlas.sum(0), torch.ones(8, 4, 4))
    # each map counts twice, as it is and mirrored; the left hippocampus of a mirror image is the other map's right one
    for side, places in (("left", (1, 2)), ("right", (6, 5))):
        for place in places:
            assert atlas[CLASS[f"{side} hippocampus"], place, 1, 1] == pytest.approx(0.25)
    assert atlas[CLASS["left cerebral white matter"], 0].min() == 1


def test_it_is_symmetric():
    rng = np.random.default_rng(0)
    values = rng.choice([2, 41, 17, 53, 16, 0, 505], (1, 16, 8, 8)).astype(np.int16)
    atlas = mean_atlas([torch.from_numpy(values)], coarser=2, blur_voxels=2.0)
    for name, number in CLASS.items():
        other = name.replace("left", "X").replace("right", "left").replace("X", "right")
        torch.testing.assert_close(atlas[number], atlas[CLASS[other]].flip(0))


def test_blur_is_a_gaussian():
    sharp, blurred = (mean_atlas([a_map(2)], coarser=2, blur_voxels=sigma) for sigma in (0.01, 2.0))
    expected = [gaussian_filter(one, 1.0, mode="constant", truncate=4) for one in sharp.double().numpy()]
    np.testing.assert_allclose(blurred, expected, atol=0.03)
