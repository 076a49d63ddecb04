"""Label a head in an upright box: the network sees it upright and in the template's size, labels come back."""

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from scipy import ndimage

from monai_vit3d.data import UsageError
from monai_vit3d.inferers import UprightInferer
from monai_vit3d.inferers.upright import _median_probability
from tests.inferers.ball_head import (
    BRIGHTNESS,
    RADIUS_MM,
    STRUCTURES,
    STRUCTURES_MM,
    ByBrightness,
    ball_localizer,
    head,
)

BOX = (88, 88, 88)  # 176 mm


class Seen(ByBrightness):
    """The network, which keeps what it was given."""

    def forward(self, x):
        self.image = x
        return super().forward(x)


def inferer(**options):
    window = SlidingWindowInferer(BOX, sw_batch_size=1, overlap=0)
    shape = {"num_classes": len(BRIGHTNESS), "box": BOX, "box_spacing_mm": 2.0, "spacing_mm": 1.0}
    return UprightInferer(window, ball_localizer(), **shape | options)


@pytest.mark.slow
def test_labels_lie_where_the_structures_are():
    upright, (image, centres) = inferer(), head((12, -15, 20), shift=(3, -4, 2))
    upright(torch.zeros(1, 1, 40, 40, 40), ByBrightness(BRIGHTNESS))
    assert upright.doubts  # of that input alone
    logits = upright(image[None], ByBrightness(BRIGHTNESS))
    assert upright.doubts == ()
    assert upright.pose.good
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(1, *image.shape[1:]), atol=1e-4, rtol=0)
    labels = logits.argmax(1)[0].numpy()
    for number, name in enumerate(STRUCTURES, 1):
        found = ndimage.center_of_mass(labels == number)
        assert np.linalg.norm(np.array(found) - centres[name]) < 1
        # the network calls rims of a voxel on either side, 4 mm, background
        radius = ((labels == number).sum() * 3 / (4 * np.pi)) ** (1 / 3)
        assert RADIUS_MM[name] - 5 < radius < RADIUS_MM[name] - 2


@pytest.mark.slow
def test_the_network_sees_the_head_upright_and_in_the_templates_size():
    network = Seen(BRIGHTNESS)
    image, _ = head((12, -15, 20), shift=(3, -4, 2), size=200)
    larger = torch.from_numpy(ndimage.zoom(image[0].numpy(), 1.15, order=1))[None]
    inferer(centre_mm=(0.0, 0.0, 6.0))(larger[None], network)
    seen = network.image[0, 0].numpy()
    assert seen.shape == BOX
    for name, centre in STRUCTURES_MM.items():
        expected = (np.array(centre) - (0, 0, 6)) / 2 + (np.array(BOX) - 1) / 2
        near = np.abs(seen - STRUCTURES[name][1]) < 0.04
        grid = np.stack(np.meshgrid(*map(np.arange, BOX), indexing="ij"), -1)
        near &= np.linalg.norm(grid - expected, axis=-1) < 10
        assert np.linalg.norm(np.argwhere(near).mean(0) - expected) < 1


def test_an_image_without_a_head_is_not_labelled():
    noise = torch.rand(1, 60, 60, 60, generator=torch.Generator().manual_seed(0))
    upright = inferer()
    logits = upright(noise[None], ByBrightness(BRIGHTNESS))
    assert logits.shape == (1, len(BRIGHTNESS), 60, 60, 60)
    assert not logits.argmax(1).any()
    assert len(upright.doubts) == 1
    assert "nothing is labelled: its structures do not lie as a head's" in upright.doubts[0]


def test_the_median_of_the_structures_probabilities():
    probabilities = np.random.default_rng(0).dirichlet(np.full(6, 0.3), (7, 6, 5)).astype(np.float32)
    labels, highest = probabilities.argmax(-1), probabilities.max(-1)
    expected = np.median([highest[labels == k].mean() for k in range(1, 6)])
    assert _median_probability(torch.from_numpy(probabilities).movedim(-1, 0)) == pytest.approx(expected)


@pytest.mark.slow
def test_an_uncertain_answer_is_not_given():
    image, _ = head()
    upright = inferer(least_probability=0.5)
    flat = ByBrightness(BRIGHTNESS)
    flat.forward = lambda x: 0.1 * ByBrightness.forward(flat, x).clamp(-5, 5)
    assert not upright(image[None], flat).argmax(1).any()
    assert "median of its structures' probabilities" in upright.doubts[0]
    assert upright(image[None], ByBrightness(BRIGHTNESS)).argmax(1).any()


@pytest.mark.slow
def test_a_header_that_is_wrong_is_said():
    image, _ = head()
    upright = inferer()
    labels = upright(image.flip(1, 2)[None], ByBrightness(BRIGHTNESS)).argmax(1)  # half a turn
    assert labels.any()
    assert len(upright.doubts) == 1
    assert "turned by 180 degrees from what the file's header says" in upright.doubts[0]


def test_several_channels_are_refused():
    with pytest.raises(UsageError, match=r"inputs: \(1, 2, 8, 8, 8\); expected volumes of one channel"):
        inferer()(torch.zeros(1, 2, 8, 8, 8), ByBrightness(BRIGHTNESS))
