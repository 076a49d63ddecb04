"""Labels on the file's grid against MONAI's Invertd on the numbers and argmax, and what is left to MONAI."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    DivisiblePadd,
    Flipd,
    Invertd,
    Orientationd,
    ResizeWithPadOrCropd,
    Spacingd,
    SpatialPadd,
    Zoomd,
)
from torch.nn.functional import interpolate

from monai_vit3d.data.errors import UsageError
from monai_vit3d.transforms import LabelInverter, SeparableSpacingd, argmax_classes, axis_aligned, trace_inverse
from tests.helpers import pairwise

SHAPE = (22, 24, 15)
TURN = nib.eulerangles.euler2mat(*np.deg2rad([25, -10, 40])) @ np.diag([2.0, 2.0, 2.5])
AFFINES = {
    "permuted and flipped": np.array([[0, -2.0, 0, 20], [2, 0, 0, -25], [0, 0, 2.5, 7], [0, 0, 0, 1]]),
    "flipped": np.diag([-2.0, 1, 3, 1]),
    "thick": np.diag([0.8, 0.8, -6, 1]),
    "oblique": nib.affines.from_matvec(TURN, [1, 2, 3]),
}
TURNING = {"pixdim": (1.5, 1.5, 2.0), "diagonal": True}
ORIENT = Orientationd("image", axcodes="RAS", labels=None)
SPACE = Spacingd("image", pixdim=(1.5, 1.5, 2.0))
CROP = CenterSpatialCropd("image", (20, 17, 9))
CHAINS = {
    "spacing": [SPACE],
    "orientation, spacing": [ORIENT, SPACE],
    "ours": [ORIENT, SeparableSpacingd("image", pixdim=(1.5, 1.5, 2.0))],
    "spacing, orientation": [SPACE, ORIENT],
    "pads": [ORIENT, SPACE, SpatialPadd("image", (64, 64, 32)), DivisiblePadd("image", k=7)],
    "pad or crop": [ORIENT, SPACE, ResizeWithPadOrCropd("image", (60, 14, 33))],
    "crop after": [ORIENT, SPACE, CROP],
    "crop before": [CROP, ORIENT, SPACE],
    "foreground": [ORIENT, SPACE, CropForegroundd("image", "image", select_fn=lambda x: x > 0.9, margin=2)],
    "no spacing": [ORIENT, CROP],
    "turned": [ORIENT, Spacingd("image", **TURNING)],
    "turned, crop after": [ORIENT, Spacingd("image", **TURNING), CROP],
    "turned, crop before, pad after": [CROP, ORIENT, Spacingd("image", **TURNING), DivisiblePadd("image", k=7), ORIENT],
}


def prepared(chain, affine, shape=SHAPE, classes=5, smooth=True):
    """The transforms, what they make of an image, and numbers on its grid."""
    rng = torch.Generator().manual_seed(0)
    transform = Compose(chain)
    image = transform({"image": MetaTensor(torch.rand(1, *shape, generator=rng), affine=torch.as_tensor(affine))})[
        "image"
    ]
    size = tuple(image.shape[1:])
    if not smooth:
        return transform, image, torch.randn(classes, *size, generator=rng)
    coarse = torch.randn(1, classes, *[max(2, n // 8) for n in size], generator=rng)
    return transform, image, 5 * interpolate(coarse, size, mode="trilinear")[0]


def by_monai(transform, image, values):
    invert = Invertd("pred", transform, orig_keys="image", nearest_interp=False)
    return invert({"pred": MetaTensor(values.clone()), "image": image})["pred"].as_tensor()


def ours(way, values, height=7, **options):
    inverter = LabelInverter(way, **options)
    for planes in values.split(height, 1):
        planes = planes.clone()
        inverter.feed(planes)
        planes.fill_(torch.nan)  # the stitcher uses its band again
    return inverter.labels()


def check(found, back):
    """Labels are the argmax of what MONAI has brought back, but for ties."""
    assert found.shape == (1, *back.shape[1:])
    best = back.topk(2, 0).values
    clear = (best[0] - best[1] > 1e-5) | (back == 0).all(0)  # zeros are put around what was cut off: label 0
    assert clear.float().mean() > 0.8
    assert torch.equal(found[0][clear].long(), back.argmax(0)[clear])


@pytest.mark.parametrize(("chain", "affine", "smooth"), pairwise(CHAINS, AFFINES, [True, False]))
def test_labels_are_those_of_monai(chain, affine, smooth):
    transform, image, values = prepared(CHAINS[chain], AFFINES[affine], smooth=smooth)
    way = trace_inverse(image, transform, SHAPE)
    assert (way.xform is not None) is ("turned" in chain and affine == "oblique")
    back = by_monai(transform, image, values)
    found = ours(way, values)
    check(found, back)
    assert len(found.unique()) == 5
    if "crop" not in chain and "foreground" not in chain:
        assert (found[0] == back.argmax(0)).float().mean() >= 0.99999


@pytest.mark.parametrize("share", [-1, 2])
def test_all_of_a_plane_or_its_borders_alone(monkeypatch, share):
    monkeypatch.setattr(axis_aligned, "MAX_SPARSE_SHARE", share)
    for affine in ("flipped", "thick"):
        transform, image, values = prepared(CHAINS["pads"], AFFINES[affine])
        check(ours(trace_inverse(image, transform, SHAPE), values), by_monai(transform, image, values))


@pytest.mark.parametrize("height", [1, 2, 1000])
@pytest.mark.parametrize("chain", ["orientation, spacing", "turned"])
def test_however_many_planes_come_at_a_time(chain, height):
    transform, image, values = prepared(CHAINS[chain], AFFINES["oblique"])
    way = trace_inverse(image, transform, SHAPE)
    assert torch.equal(ours(way, values, height), ours(way, values))


@pytest.mark.parametrize(
    "chain", ["orientation, spacing", "turned", "crop after", "crop before", "pad or crop", "turned, crop after"]
)
@pytest.mark.parametrize("affine", ["flipped", "oblique"])
@pytest.mark.parametrize("limit", [0.4, -0.1])  # zeros around a crop are below, or above
def test_masks_that_overlap(chain, affine, limit):
    transform, image, values = prepared(CHAINS[chain], AFFINES[affine], classes=3)
    values = values.sigmoid() - (limit < 0) / 2
    back = by_monai(transform, image, values)
    found = ours(trace_inverse(image, transform, SHAPE), values, decide=lambda v: (v >= limit).to(torch.uint8))
    clear = (back - limit).abs() > 1e-5
    assert torch.equal(found.bool()[clear], back[clear] >= limit)
    assert (found.sum(0) > 1).any()
    assert not found.all()


@pytest.mark.parametrize("chain", ["no spacing", "ours", "turned"])
def test_labels_may_be_asked_for_twice(chain):
    transform, image, values = prepared(CHAINS[chain], AFFINES["oblique"])
    inverter = LabelInverter(trace_inverse(image, transform, SHAPE))
    inverter.feed(values)
    assert torch.equal(inverter.labels(), inverter.labels())


@pytest.mark.parametrize("shape", [(1, 24, 15), (22, 1, 15), (22, 24, 1), (2, 2, 2)])
@pytest.mark.parametrize("chain", ["orientation, spacing", "turned"])
def test_sides_of_one_voxel(chain, shape):
    transform, image, values = prepared(CHAINS[chain], AFFINES["oblique"], shape)
    check(ours(trace_inverse(image, transform, shape), values), by_monai(transform, image, values))


def test_many_classes():
    transform, image, values = prepared(CHAINS["orientation, spacing"], AFFINES["flipped"], classes=300, smooth=False)
    back = by_monai(transform, image, values)
    found = ours(trace_inverse(image, transform, SHAPE), values)
    check(found, back)
    assert found.max() > 255


@pytest.mark.parametrize(
    "chain",
    [
        [SPACE, Spacingd("image", pixdim=(1.0, 1.0, 1.0))],
        [Spacingd("image", pixdim=(1.5, 1.5, 2.0), mode="nearest")],
        [Spacingd("image", pixdim=(1.5, 1.5, 2.0), mode=3, padding_mode="nearest")],
        [Spacingd("image", pixdim=(1.5, 1.5, 2.0), padding_mode="zeros")],
        [Spacingd("image", **TURNING, dtype=torch.float32)],
        [Flipd("image", 0)],
        [ORIENT, Zoomd("image", 0.8)],
    ],
    ids=["twice", "nearest", "cubic", "zeros outside", "turned in float32", "flip", "zoom"],
)
def test_what_is_left_to_monai(chain):
    transform, image, _ = prepared(chain, AFFINES["oblique"])
    assert trace_inverse(image, transform, SHAPE) is None


def test_another_grid_than_the_files_is_left_to_monai():
    transform, image, _ = prepared([ORIENT, SPACE], AFFINES["flipped"])
    assert trace_inverse(image, transform, (22, 24, 16)) is None
    assert trace_inverse(image.as_tensor(), transform, SHAPE) is None


def test_planes_that_are_missing():
    transform, image, values = prepared([ORIENT, SPACE], AFFINES["flipped"])
    inverter = LabelInverter(trace_inverse(image, transform, SHAPE))
    inverter.feed(values[:, :5])
    with pytest.raises(UsageError, match="5 planes were fed of 29"):
        inverter.labels()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2, 14, 256, 300])
@pytest.mark.parametrize("shape", [(7, 6, 5), (3000,), (1, 1, 1), (70, 40, 30)])
def test_the_likeliest_is_argmax(classes, shape):
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(classes, *shape, generator=rng).round(decimals=1)  # many ties
    assert torch.equal(argmax_classes(values).long(), values.argmax(0))
    turned = values.transpose(1, -1)
    assert torch.equal(argmax_classes(turned).long(), turned.argmax(0))
    assert argmax_classes(values).dtype is (torch.uint8 if classes <= 256 else torch.int16)
