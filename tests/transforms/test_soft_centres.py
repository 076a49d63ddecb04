"""Soft centres: scipy's centre of mass of the squares, and a gradient that draws probability to the truth."""

import numpy as np
import torch
from scipy.ndimage import center_of_mass

from monai_vit3d.transforms.soft_centres import soft_centres
from tests.helpers import randn


def test_centres_are_scipys():
    probabilities = randn(2, 3, 7, 9, 8).sigmoid()
    expected = [[center_of_mass(channel.square().numpy()) for channel in one] for one in probabilities]
    np.testing.assert_allclose(soft_centres(probabilities).numpy(), expected, rtol=1e-12)


def test_a_single_voxel_is_its_own_centre():
    probabilities = torch.zeros(1, 1, 6, 7, 8)
    probabilities[0, 0, 1, 5, 2] = 0.3
    assert soft_centres(probabilities).tolist() == [[[1.0, 5.0, 2.0]]]


def test_nothing_has_its_centre_in_the_middle():
    assert soft_centres(torch.zeros(1, 2, 5, 7, 9)).tolist() == [[[2.0, 3.0, 4.0]] * 2]
