"""A key for each modality, names of channels, and images of which nothing is left."""

import json

import numpy as np
import pytest

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.cli import main
from monai_vit3d.data.errors import BundleError, ImageError
from monai_vit3d.data.nifti import read_nifti
from monai_vit3d.pipeline.prepare import prepare
from tests.pipeline import zoo
from tests.pipeline.reference import (
    ARGMAX,
    LOAD,
    ORIENT,
    SPACING,
    TYPED,
    invert,
    monai_labels,
    our_labels,
    several,
    sharp_image,
    write_bundle,
)

KEYS = ["t1", "flair"]
JOIN = {"_target_": "ConcatItemsd", "keys": KEYS, "name": "image"}
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": "$lambda x: x > 0"}


def of(steps, keys):
    return [{**step, "keys": keys} for step in steps]


@pytest.fixture
def images(tmp_path):
    return {key: sharp_image(tmp_path / "in" / f"{key}.nii.gz", seed) for seed, key in enumerate(KEYS)}


def two_keys(folder, *before, after=(), post=None):
    return write_bundle(folder, [*of([LOAD, ORIENT, *before], KEYS), JOIN, *after, TYPED], post, channels=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["image_t1,image_flair,name\n{t1},{flair},p\n", "image_FLAIR,name,image_T1\n{flair},p,{t1}\n"]
)
def test_a_key_for_each_modality(tmp_path, images, text):
    post = [ARGMAX, invert(orig_keys="t1")]  # MONAI undoes what was done under that key
    bundle = two_keys(tmp_path / "bundle", SPACING, post=post)
    (tmp_path / "list.csv").write_text(text.format(**images))
    (ours,) = our_labels(bundle, tmp_path / "list.csv", tmp_path / "ours", ["p"], "--safe")
    (monai,) = monai_labels(bundle, [images], tmp_path / "monai")
    assert several(ours)
    np.testing.assert_array_equal(ours, monai)
    assert json.loads((tmp_path / "ours" / "run.json").read_text())["inputs"] != []


def test_the_way_back_leads_through_both_keys(tmp_path, images):
    """A crop behind the join is under another key than the spacing before it: MONAI undoes only one of them."""
    bundle = two_keys(tmp_path / "bundle", SPACING, after=[{**CROP, "k_divisible": 4}])
    (tmp_path / "list.json").write_text(json.dumps([{f"image_{key}": str(path) for key, path in images.items()}]))
    (ours,) = our_labels(bundle, tmp_path / "list.json", tmp_path / "ours", ["t1"], "--safe")
    assert ours.shape == (21, 26, 18)
    assert several(ours)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("image\n{t1}\n", "1 image(s); the bundle loads 2 for each case: t1, flair"),
        ("image_t1,image_t2\n{t1},{flair}\n", "Expected image_t1, image_flair"),
    ],
)
def test_other_lists_end_in_one_line_before_any_work(tmp_path, images, capsys, text, word):
    (tmp_path / "list.csv").write_text(text.format(**images))
    words = ["predict", tmp_path / "list.csv", "-o", tmp_path / "out", "--bundle", two_keys(tmp_path / "b"), "--safe"]
    assert main([*map(str, words), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line
    assert not (tmp_path / "out").exists()


def test_images_that_are_never_joined(tmp_path, images):
    bundle = write_bundle(tmp_path / "bundle", of([LOAD, ORIENT], KEYS), channels=2)
    with pytest.raises(BundleError, match="leaves a NoneType under 'image'"):
        prepare([read_nifti(path) for path in images.values()], load_bundle(bundle, "cpu"))


@pytest.mark.slow
def test_columns_are_channels_by_the_metadatas_names(tmp_path, images, capsys):
    bundle = write_bundle(tmp_path / "bundle", [LOAD, ORIENT, TYPED], channels=2)
    about = zoo.metadata(("background", "one", "two"), 2)
    about["network_data_format"]["inputs"]["image"]["channel_def"] = {"0": "T1", "1": "FLAIR"}
    (bundle / "configs" / "metadata.json").write_text(json.dumps(about))
    found = []
    tables = ("image_t1,image_flair,name\n{t1},{flair},p\n", "image_flair,image_t1,name\n{flair},{t1},p\n")
    for i, text in enumerate(tables):
        (tmp_path / "list.csv").write_text(text.format(**images))
        found += our_labels(bundle, tmp_path / "list.csv", tmp_path / f"out{i}", ["p"])
        record = json.loads((tmp_path / f"out{i}" / "run.json").read_text())
        assert record["inputs"] == ["inputs of the bundle: T1 = t1, FLAIR = flair"]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "behind", [[], [{"_target_": "ScaleIntensityd", "keys": "image"}]], ids=["last", "before others"]
)
def test_nothing_is_left_of_air(tmp_path, behind):
    bundle = load_bundle(write_bundle(tmp_path / "bundle", [LOAD, ORIENT, CROP, *behind, TYPED]), "cpu")
    air = zoo.smooth_image()
    path = tmp_path / "air.nii.gz"
    type(air)(np.full(air.shape, -1000, np.int16), air.affine).to_filename(path)
    with pytest.raises(ImageError, match=r"air\.nii\.gz: nothing is left of it after the bundle's CropForegroundd"):
        prepare([read_nifti(path)], bundle)
