"""What is kept of a labelled left and right structure, one thing wrong at a time."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.spatial.transform import Rotation

from monai_vit3d.inferers.head_localizer import HeadPose
from monai_vit3d.inferers.side_limits import LabelledSide, SideLimits, flat_share, plausible_sides
from monai_vit3d.transforms.oblique_grid import ObliqueGrid
from monai_vit3d.transforms.similarity import Similarity

CENTRES_MM = {"left": (-26.0, -20.0, -15.0), "right": (26.0, -20.0, -15.0)}
EXPECTED = {name: torch.tensor(centre, dtype=torch.float64) for name, centre in CENTRES_MM.items()}


def rotation(degrees):
    return torch.from_numpy(Rotation.from_euler("z", degrees, True).as_matrix())


def pose(degrees=0.0, good=True):
    return HeadPose({}, Similarity(rotation(degrees), 1.0, torch.zeros(3).double()), 3.0, good)


def side(name, voxels=3000, probability=0.95, shift=(0, 0, 0), flat=0.0, degrees=0.0):
    """A side of so many cubic millimetres, shifted from where it is expected."""
    centre = rotation(degrees) @ EXPECTED[name] + torch.tensor(shift, dtype=torch.float64)
    labels = torch.zeros(1, 20, 20, 20)
    labels.view(-1)[:voxels] = 1
    probabilities = torch.full((2, 20, 20, 20), 1 - probability)
    probabilities[1] = probability
    return LabelledSide(name, ObliqueGrid(centre, rotation(0), (20, 20, 20), 1.0), probabilities, labels, centre, flat)


def kept(left=None, right=None, at=None, limits=None):
    """Names of the sides that are kept, and the doubts, of a head whose sides differ from good ones by options."""
    at = at or pose()
    degrees = float(np.degrees(np.arctan2(at.fit.rotation[1, 0], at.fit.rotation[0, 0])))
    sides = {
        name: side(name, degrees=degrees, **(options or {})) for name, options in (("left", left), ("right", right))
    }
    expected = {name: at.fit.rotation @ centre for name, centre in EXPECTED.items()}
    plausible, doubts = plausible_sides(sides, expected, at, limits or SideLimits())
    return list(plausible), doubts


def test_good_sides_are_kept_without_a_word():
    assert kept() == (["left", "right"], [])
    assert kept(left={"shift": (0, 19, 0)}, right={"shift": (0, 19, 0)}) == (["left", "right"], [])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"voxels": 900}, r"0\.90 ml \(expected 1 to 7\)"),
        ({"voxels": 7200}, r"7\.20 ml"),
        ({"voxels": 0}, r"0\.00 ml"),
        ({"shift": (0, 20, 20)}, r"its labels lie 28 mm from where the head's pose has it \(expected at most 20\)"),
        ({"probability": 0.75}, r"mean probability 0\.75 \(expected at least 0\.87\)"),
        ({"flat": 0.4}, r"40% of it lies where the image has one value only \(expected at most 10%\)"),
    ],
)
def test_one_side_that_is_implausible_is_left_out_and_the_other_kept(options, text):
    for name, other in (("left", "right"), ("right", "left")):
        names, (doubt,) = kept(**{name: options})
        assert names == [other]
        assert doubt.startswith(f"the {name} was not found for certain and is left out: ")
        assert re.search(text, doubt), doubt


@pytest.mark.parametrize(
    ("options", "at", "text"),
    [
        ({"probability": 0.88}, {}, "mean probability 0.88 (expected at least 0.9)"),
        ({"shift": (0, 0, 18)}, {}, "its labels lie 18 mm"),
        ({}, {"good": False}, "the image may show no head"),
        ({}, {"degrees": 177.0}, "the head does not lie as the header says"),
    ],
)
def test_a_side_alone_has_to_be_more_certain_than_one_of_a_pair(options, at, text):
    """So are a CT, a FLAIR and a head whose hippocampi were filled."""
    names, doubts = kept(left=options, right={"voxels": 500}, at=pose(**at))
    assert names == []
    assert any(
        doubt.startswith("the left, found without its pair, is left out, too: ") and text in doubt for doubt in doubts
    )
    if not at:
        assert kept(left=options, right=options)[0] == ["left", "right"]  # two of them are kept


@pytest.mark.parametrize("at", [{"good": False}, {"degrees": 154.0}], ids=str)
def test_a_pair_in_an_odd_pose_has_to_be_as_certain_as_one_alone(at):
    """So is MNI152 with its brightness inverted, whose sides were seen 40 mm away in a head turned by 154 degrees."""
    assert kept(at=pose(**at))[0] == ["left", "right"]
    both, text = {"probability": 0.88}, "mean probability 0.88 (expected at least 0.9)"
    names, doubts = kept(both, both, pose(**at))
    assert names == []
    assert sum(text in doubt for doubt in doubts) == 2
    both = {"shift": (0, 0, 18)}
    names, doubts = kept(both, both, pose(**at))
    assert names == []
    assert sum("its labels lie 18 mm" in doubt for doubt in doubts) == 2


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        ({"shift": (12, 0, 0)}, {"shift": (-4, 0, 0)}, "they lie 36 mm apart (expected 40 to 70)"),
        ({"shift": (-12, 0, 0)}, {"shift": (12, 0, 0)}, "they lie 76 mm apart"),
        ({"shift": (0, 0, 10)}, {"shift": (0, 0, -10)}, "one lies 20 mm above or in front of the other"),
        ({"shift": (0, -10, 0)}, {"shift": (0, 10, 0)}, "one lies 20 mm above or in front of the other"),
    ],
)
def test_a_pair_that_is_implausible_is_left_out(left, right, text):
    for degrees in (0.0, 40.0):  # in the head's own directions
        turn = rotation(degrees).numpy()
        turned = [{"shift": tuple(turn @ options["shift"])} for options in (left, right)]
        names, (doubt,) = kept(*turned, at=pose(degrees))
        assert names == []
        assert text in doubt


def test_left_to_the_right_of_right_is_left_out():
    sides = {"left": replace(side("right"), name="left"), "right": replace(side("left"), name="right")}
    plausible, doubts = plausible_sides(
        sides, {"left": EXPECTED["right"], "right": EXPECTED["left"]}, pose(), SideLimits()
    )
    assert (plausible, "left lies to the right of right" in doubts[0]) == ({}, True)


def test_a_head_that_is_turned_by_a_right_angle_is_said():
    names, (doubt,) = kept(at=pose(90.0))
    assert names == ["left", "right"]
    assert "turned by 90 degrees" in doubt
    assert kept(at=pose(30.0)) == (["left", "right"], [])


def test_the_limits_are_those_that_are_given():
    assert kept(left={"voxels": 900}, limits=SideLimits(volume_ml=(0.5, 7.0))) == (["left", "right"], [])


def test_flat_voxels_are_those_that_equal_all_their_neighbours():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 5, (12, 11, 10)).astype(np.float32)
    image[3:9] = 2
    labels = rng.integers(0, 3, image.shape)
    flat = maximum_filter(image, 3, mode="nearest") == minimum_filter(image, 3, mode="nearest")
    assert flat_share(torch.from_numpy(image)[None], torch.from_numpy(labels)[None]) == pytest.approx(
        flat[labels > 0].mean()
    )
    assert flat_share(torch.from_numpy(image)[None], torch.zeros(1, *image.shape)) == 0
