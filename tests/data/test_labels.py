"""Label maps that a training would misread are refused by name; all others come through as they were."""

import re

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd

from monai_vit3d.data import CheckLabelsd, ImageError, NiftiReader

AFFINE = np.diag([-1.5, 1.0, 2.0, 1.0])


def loaded(tmp_path, label, affine=AFFINE, shape=(6, 5, 4)):
    """What a training's first steps make of an image and these labels."""
    nib.Nifti1Image(np.zeros(shape, np.int16) + np.arange(4, dtype=np.int16), AFFINE).to_filename(tmp_path / "i.nii.gz")
    nib.Nifti1Image(label, affine).to_filename(tmp_path / "l.nii.gz")
    steps = [
        LoadImaged("image", reader=NiftiReader(), ensure_channel_first=True),
        Orientationd("image", "RAS", labels=None),  # the image's file counts, not what became of it
        LoadImaged("label", reader=NiftiReader(labels=True), ensure_channel_first=True),
        CheckLabelsd("label", num_classes=3),
    ]
    return Compose(steps)({"image": tmp_path / "i.nii.gz", "label": tmp_path / "l.nii.gz"})["label"]


def labels(shape=(6, 5, 4), dtype=np.float32, **voxels):
    made = np.zeros(shape, dtype)
    made[1:3] = 1
    made[3:] = 2
    for value in voxels.values():
        made[0, 0, :2] = value
    return made


def moved(millimetres):
    affine = AFFINE.copy()
    affine[1, 3] += millimetres
    return affine


@pytest.mark.parametrize(
    ("label", "affine", "words"),
    [
        (labels(dtype=np.uint8, value=255), AFFINE, r"255 \(2 voxels\); expected whole numbers from 0 to 2"),
        (labels(dtype=np.int16, value=-1), AFFINE, r"-1 \(2 voxels\)"),
        (labels(dtype=np.uint8, value=3), AFFINE, r"3 \(2 voxels\).*set num_classes"),
        (labels(value=1.5), AFFINE, r"1\.5 \(2 voxels\)"),
        (labels(value=0.01), AFFINE, r"0\.01 \(2 voxels\)"),
        (labels(value=np.nan), AFFINE, "not finite .2 NaN."),
        (labels(value=np.inf), AFFINE, "not finite .2 .Inf."),
        (labels(dtype=np.float64, value=1e30), AFFINE, "1e.30"),
        (labels((6, 5, 5)), AFFINE, r"shape \(6, 5, 5\), its image has \(6, 5, 4\)"),
        (labels(), moved(1.0), "1 voxels away"),
        (labels(), np.diag([1.5, 1.0, 2.0, 1.0]), "voxels away"),
        (np.stack([labels(), labels()], -1), AFFINE, "4D"),
    ],
    ids=["255", "-1", "one class more", "1.5", "0.01", "nan", "inf", "huge", "shape", "moved", "mirrored", "4D"],
)
def test_what_would_be_misread_is_refused_with_its_file(label, affine, words, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        loaded(tmp_path, label, affine)
    own = caught.value.__cause__
    assert isinstance(own, ImageError)
    assert str(own).startswith(f"{tmp_path / 'l.nii.gz'}: ")
    assert re.search(words, str(own))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_sound_labels_stay(dtype, tmp_path):
    np.testing.assert_array_equal(loaded(tmp_path, labels(dtype=dtype))[0].numpy(), labels())


def test_labels_that_a_slope_rounded_are_whole_again(tmp_path):
    found = loaded(tmp_path, labels() * np.float32(0.9999997))
    np.testing.assert_array_equal(found[0].numpy(), labels())


@given(st.lists(st.integers(-3, 6), min_size=8, max_size=8), st.integers(2, 5))
def test_exactly_the_numbers_of_classes_pass(values, num_classes):
    label = MetaTensor(torch.tensor(values, dtype=torch.float32).reshape(1, 2, 2, 2), meta={"filename_or_obj": "l.nii"})
    check = CheckLabelsd("label", num_classes, image_key=None)
    outside = {value for value in values if not 0 <= value < num_classes}
    if not outside:
        assert torch.equal(check({"label": label})["label"], label)
        return
    with pytest.raises(ImageError, match=r"^l\.nii: label ") as caught:
        check({"label": label})
    assert all(f"{value} ({values.count(value)} voxels)" in str(caught.value) for value in sorted(outside)[:5])
