"""Find structures and label them in boxes, with networks that read classes off the brightness: all else is ours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn.functional import avg_pool3d

from monai_vit3d.data import UsageError
from monai_vit3d.inferers import HeadLocalizer, LocalizedInferer
from monai_vit3d.inferers.head_localizer import right_angle_turns, turned_image
from monai_vit3d.transforms.oblique_grid import ObliqueGrid, onto_grid
from monai_vit3d.transforms.similarity import Similarity, turn_degrees
from tests.inferers.ball_head import (
    RADIUS_MM,
    STRUCTURES_MM,
    ball_localizer,
    head,
)

SIDES = {
    "left part": {"classes": [1, 2], "centres_mm": [(-26.0, -16.0, -15.0), (-26.0, -24.0, -15.0)]},
    "right part": {"classes": [3, 4], "centres_mm": [(26.0, -16.0, -15.0), (26.0, -24.0, -15.0)]},
}


class Halves(nn.Module):
    """Two classes of what is dark in a bright box: its front and its back half."""

    def forward(self, x):
        dark = avg_pool3d(x, 3, 1, 1) < -1  # of noise alone none is
        places = dark[0, 0].nonzero().float()
        middle = places[:, 1].mean() if len(places) else 0.0
        front = torch.arange(x.shape[3]).view(1, 1, 1, -1, 1) > middle
        return 20.0 * torch.cat([~dark, dark & front, dark & ~front], 1)


@pytest.fixture(scope="module")
def localizer():
    return ball_localizer()


@pytest.fixture(scope="module")
def inferer(localizer):
    return LocalizedInferer(SimpleInferer(), localizer, SIDES, (36, 36, 36), limits={"volume_ml": (2.0, 9.0)})


@pytest.mark.slow
@pytest.mark.parametrize("rotation", [(0, 0, 0), (20, -10, 15), (0, 0, 90), (180, 0, 0)])
def test_the_pose_is_that_of_the_structures(localizer, rotation):
    image, centres = head(rotation, shift=(6, -4, 3))
    pose = localizer(image, (1.0, 1.0, 1.0))
    assert pose.good
    for name, centre in centres.items():
        assert np.linalg.norm(pose.centres_mm[name].numpy() - centre) < 2
        assert np.linalg.norm(pose.fit(localizer.template[name]).numpy() - centre) < 2
    expected = Rotation.from_euler("xyz", rotation, True).as_matrix()
    np.testing.assert_allclose(pose.fit.rotation.numpy(), expected, atol=0.05)
    assert pose.fit.scale == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_looks_from_all_sides_that_agree_are_one_pose(localizer):
    first, second = localizer.poses(head((0, 0, 90))[0], (1.0, 1.0, 1.0))
    for pose in (first, second):
        assert pose.good
        assert turn_degrees(pose.fit.rotation) == pytest.approx(90, abs=3)


@pytest.mark.slow
def test_the_next_pose_is_tried_where_the_first_shows_no_sides(inferer, monkeypatch):
    poses = inferer.localizer.poses

    def wrong_first(volume, spacing_mm):
        right = next(poses(volume, spacing_mm))
        turn = Similarity(torch.diag(torch.tensor([-1.0, 1.0, -1.0])).double(), 1.0, torch.full((3,), 30.0).double())
        yield replace(right, fit=turn)
        yield right

    monkeypatch.setattr(inferer.localizer, "poses", wrong_first)
    labels = inferer(head()[0][None], Halves())[0].argmax(0)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4}
    assert inferer.doubts == ()  # those of the pose that was taken
    # a side alone is not taken in a later pose
    labels = inferer(head(without=["right part"])[0][None], Halves())[0].argmax(0)
    assert set(labels.unique().tolist()) == {0}
    assert any("left part" in doubt for doubt in inferer.doubts)


def test_a_look_from_another_side_is_the_volume_on_the_turned_grid():
    volume = torch.rand(1, 20, 24, 18, generator=torch.Generator().manual_seed(0))
    middle, spacing_mm = torch.tensor([8.5, 12.0, 9.0]).double(), (1.0, 1.1, 0.9)
    image, *turned = (
        onto_grid(volume, spacing_mm, ObliqueGrid(middle, turn, (8, 8, 8), 2.0), 2) for turn in right_angle_turns()
    )
    for turn, expected in zip(right_angle_turns()[1:], turned):
        torch.testing.assert_close(turned_image(image, turn), expected, rtol=1e-5, atol=1e-6)


def test_an_image_of_one_value_shows_no_head(localizer):
    coarse = HeadLocalizer(localizer.network, STRUCTURES_MM, (16, 16, 16), 16.0)
    assert coarse(torch.zeros(1, 60, 60, 60), (1.0, 1.0, 1.0)) is None


@pytest.mark.slow
@pytest.mark.parametrize("rotation", [(0, 0, 0), (20, -10, 15)])
def test_both_sides_are_labelled_where_they_are(inferer, rotation):
    image, centres = head(rotation)
    logits = inferer(image[None], Halves())
    probabilities, labels = logits.exp()[0], logits[0].argmax(0)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(image.shape[1:]), atol=1e-4, rtol=0)
    assert inferer.doubts == ()
    for name, side in SIDES.items():
        truth = (((np.stack(np.indices(labels.shape), -1)) - centres[name]) ** 2).sum(-1) < RADIUS_MM[name] ** 2
        labelled = np.isin(labels.numpy(), side["classes"])
        assert 2 * (truth & labelled).sum() / (truth.sum() + labelled.sum()) > 0.93
        front, back = (np.argwhere(labels.numpy() == value).mean(0) for value in side["classes"])
        forward = Rotation.from_euler("xyz", rotation, True).as_matrix()[:, 1]
        assert (front - back) @ forward > 5


@pytest.mark.slow
def test_each_volume_of_a_batch_is_labelled_by_itself(inferer):
    one, other = head()[0], head(shift=(5, 5, 0))[0]
    both = inferer(torch.stack([one, other]), Halves())
    torch.testing.assert_close(both, torch.cat([inferer(x[None], Halves()) for x in (one, other)]), atol=0, rtol=0)


@pytest.mark.slow
def test_a_missing_side_is_left_out_and_said(inferer):
    labels = inferer(head(without=["right part"])[0][None], Halves())[0].argmax(0)
    assert set(labels.unique().tolist()) == {0, 1, 2}
    (doubt,) = inferer.doubts
    assert doubt.startswith("the right part was not found for certain and is left out: 0.00 ml")


@pytest.mark.slow
def test_a_head_that_is_turned_is_said(inferer):
    labels = inferer(head((0, 0, 90))[0][None], Halves())[0].argmax(0)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4}
    (doubt,) = inferer.doubts
    assert "turned by 90 degrees" in doubt


def test_what_cannot_be_used_is_refused(localizer, inferer):
    with pytest.raises(UsageError, match=r"sides: nose; expected some of left part, .*"):
        LocalizedInferer(SimpleInferer(), localizer, {"nose": {"classes": [1], "centres_mm": [(0, 0, 0)]}}, (8, 8, 8))
    with pytest.raises(UsageError, match=r"inputs: \(1, 2, 8, 8, 8\); expected volumes of one channel"):
        inferer(torch.zeros(1, 2, 8, 8, 8), Halves())
    with pytest.raises(UsageError, match=r"size=\(8, 8, 9\); expected one number three times"):
        HeadLocalizer(nn.Identity(), STRUCTURES_MM, (8, 8, 9))
    with pytest.raises(UsageError, match="template_mm has 2 centres; expected three or more"):
        HeadLocalizer(nn.Identity(), {"a": (0, 0, 0), "b": (1, 0, 0), "c": None})
