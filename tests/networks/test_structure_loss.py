"""The loss of a localizer: cross-entropy where centres agree, more the farther they are off."""

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from torch.nn.functional import cross_entropy

from monai_vit3d.networks import StructureLoss
from monai_vit3d.networks.structure_loss import class_centres
from tests.helpers import randn

WEIGHTS = [0.1, 1.0, 2.0]


def _classes(*places):
    classes = torch.zeros(1, 1, 12, 12, 12, dtype=torch.uint8)
    for number, (x, y, z) in enumerate(places, 1):
        classes[0, 0, x : x + 4, y : y + 4, z : z + 4] = number
    return classes


def _sure_of(classes):
    return 20 * torch.nn.functional.one_hot(classes[:, 0].long(), 3).movedim(-1, 1).float()


def test_without_centres_it_is_torchs_cross_entropy():
    logits, classes = randn(1, 3, 12, 12, 12).float(), _classes((0, 2, 4), (6, 6, 8))
    expected = cross_entropy(logits, classes[:, 0].long(), torch.tensor(WEIGHTS))
    assert StructureLoss(WEIGHTS, centre_weight=0)(logits, classes).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_distance_of_the_centres_is_added_in_voxels():
    truth, moved = _classes((0, 2, 4), (6, 6, 8)), _classes((4, 2, 4), (6, 6, 8))
    logits = _sure_of(moved)
    plain, both = (StructureLoss(WEIGHTS, weight)(logits, truth).item() for weight in (0, 1))
    assert both - plain == pytest.approx(4 / 3 / 2, abs=1e-3)  # 4 voxels along one of three axes, of one of two


def test_a_structure_that_is_not_there_counts_not():
    truth = _classes((0, 2, 4))
    losses = [StructureLoss(WEIGHTS, weight)(_sure_of(truth), truth).item() for weight in (0, 1)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    nothing = torch.zeros_like(truth)
    losses = [StructureLoss(WEIGHTS, weight)(randn(1, 3, 12, 12, 12).float(), nothing).item() for weight in (0, 1)]
    assert losses[0] == losses[1]


def test_steps_bring_the_centre_nearer():
    truth = _classes((0, 2, 4), (6, 6, 8))
    logits = torch.zeros(1, 3, 12, 12, 12, requires_grad=True)
    loss = StructureLoss(WEIGHTS, centre_weight=1.0)
    optimizer = torch.optim.SGD([logits], lr=50.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(loss(logits, truth))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_class_centres_are_scipys():
    classes = torch.randint(0, 4, (2, 6, 7, 8), generator=torch.Generator().manual_seed(0))
    centres, present = class_centres(classes, 5)
    for sample in range(2):
        expected = center_of_mass(np.ones((6, 7, 8)), classes[sample].numpy(), range(4))
        np.testing.assert_allclose(centres[sample, :4].numpy(), expected, rtol=1e-5)
    assert present.tolist() == [[True] * 4 + [False]] * 2
