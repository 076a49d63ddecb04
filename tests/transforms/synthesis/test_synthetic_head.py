"""Synthetic heads: reproducible by seed, sides that stay sides, contrasts that differ."""

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from monai_vit3d.data.errors import UsageError
from monai_vit3d.transforms import HEAD_STRUCTURES, RandSyntheticHead, RandSyntheticHeadd
from tests.transforms.synthesis.head_phantom import head_phantom

SMALL = {"spatial_size": (32, 32, 32), "spacing_mm": 8.0}
CLASS = {name: number for number, name in enumerate(HEAD_STRUCTURES, 1)}


@pytest.fixture(scope="module")
def phantom():
    return head_phantom()


def _drawn(phantom, seed, **options):
    return RandSyntheticHead(**SMALL | options).set_random_state(seed=seed)(phantom)


def test_shapes_types_and_range(phantom):
    for seed in range(5):
        image, classes = _drawn(phantom, seed)
        assert image.shape == classes.shape == (1, 32, 32, 32)
        assert image.dtype == torch.float32
        assert classes.dtype == torch.uint8
        assert image.min() >= 0
        assert torch.isfinite(image).all()
        assert classes.max() <= len(HEAD_STRUCTURES)


def test_a_seed_gives_the_same_head_and_others_other_ones(phantom):
    first, again, other = (_drawn(phantom, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.slow
def test_left_stays_left(phantom):
    """Without turns, left structures lie at smaller x, in mirror images as well, and thalami behind striata."""
    for seed in range(12):
        _, classes = _drawn(phantom, seed, rotate_degrees=5, shift_mm=0, stripped_share=0)
        places = {name: (classes[0] == CLASS[name]).nonzero().double() for name in CLASS}
        for name in ("cerebrum", "cerebellum"):
            left, right = (places[f"{side} {name}"][:, 0].mean() for side in ("left", "right"))
            assert left < right
        cerebellum, cerebrum = places["left cerebellum"].mean(0), places["left cerebrum"].mean(0)
        assert cerebellum[1] < cerebrum[1]  # behind
        assert cerebellum[2] < cerebrum[2]  # below


@pytest.mark.slow
def test_mirror_images_occur(phantom):
    one_sided = phantom.clone()
    one_sided[one_sided == 41] = 42  # of another structure list, only the right side has a cerebrum
    structures = {"right only": (42,), "left only": (3,)}
    present = [
        (_drawn(one_sided, seed, structures=structures, rotate_degrees=0)[1] == 1).sum().item() for seed in range(20)
    ]
    assert 3 <= sum(count > 0 for count in present) <= 17


@pytest.mark.slow
def test_the_head_can_be_turned_as_far_as_asked(phantom):
    """The line between the cerebra turns to 45 degrees, and no farther than the three turns together allow."""
    angles = []
    for seed in range(30):
        _, classes = _drawn(phantom, seed, shift_mm=0, stripped_share=0)
        left, right = ((classes[0] == CLASS[f"{s} cerebrum"]).nonzero().double().mean(0) for s in ("left", "right"))
        across = (right - left) / (right - left).norm()
        angles.append(np.degrees(np.arccos(across[0].clamp(-1, 1))))
    assert max(angles) > 30
    assert max(angles) < 75


@pytest.mark.slow
def test_brain_tissue_is_as_bright_as_t1_says_where_t1_is_asked(phantom):
    fluid_darker = []
    for seed in range(10):
        image, classes = _drawn(phantom, seed, t1_share=1.0, rotate_degrees=0, shift_mm=0)
        fluid = image[classes == CLASS["left lateral ventricle"]]
        white = image[classes == CLASS["left cerebrum"]]
        if len(fluid) and len(white):
            fluid_darker.append(bool(fluid.median() < white.median()))
    assert len(fluid_darker) >= 8
    assert all(fluid_darker)
    orders = set()
    for seed in range(20):
        image, classes = _drawn(phantom, seed, t1_share=0.0, rotate_degrees=0, shift_mm=0)
        fluid, white = (image[classes == CLASS[f"left {n}"]].median() for n in ("lateral ventricle", "cerebrum"))
        orders.add(bool(fluid < white))
    assert orders == {True, False}


def test_stripped_heads_have_nothing_outside_of_the_brain(phantom):
    _, classes = _drawn(phantom, 3, stripped_share=1.0)
    assert not (classes == CLASS["head"]).any()
    _, classes = _drawn(phantom, 3, stripped_share=0.0)
    assert (classes == CLASS["head"]).any()


@pytest.mark.slow
def test_spacing_is_read_from_the_affine():
    fine, coarse = head_phantom(2.0), head_phantom(4.0, (45, 52, 48))
    sizes = [(_drawn(labels, 0, stripped_share=0)[1] > 0).sum().item() for labels in (fine, coarse)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_in_a_compose_of_dictionaries(phantom):
    draw = Compose([RandSyntheticHeadd("label", **SMALL)]).set_random_state(seed=4)
    item, again = draw({"label": phantom, "name": "a"}), draw.set_random_state(seed=4)({"label": phantom})
    assert set(item) == {"label", "name", "image"}
    assert torch.equal(item["image"], again["image"])
    assert torch.equal(item["label"], again["label"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(8, 8, 8), "expected \\(1, H, W, D\\)"),
        (torch.zeros(2, 8, 8, 8), "expected \\(1, H, W, D\\)"),
        (torch.full((1, 8, 8, 8), 900), "to 900"),
        (torch.full((1, 8, 8, 8), -1), "from -1"),
    ],
    ids=["3D", "two channels", "too large", "negative"],
)
def test_label_maps_that_are_none(labels, words):
    with pytest.raises(UsageError, match=words):
        RandSyntheticHead(**SMALL)(labels)
