"""What is stated of published encoders, in a plan: the values that their own preparation gives."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from monai_vit3d.data.published_models import published_models
from monai_vit3d.planning.init import plan_bundle
from monai_vit3d.planning.plan import Evidence
from monai_vit3d.planning.published_recipe import stated_input
from monai_vit3d.planning.segmentation import plan_segmentation
from monai_vit3d.transforms import NormalizeChannelsd
from monai_vit3d.weights.recipes import recipe_transform
from tests.planning.evidence import fingerprint
from tests.planning.toy_data import write_toy_mr

WITH_INTENSITY = [name for name in published_models() if "intensity" in stated_input(name, {})]


@pytest.mark.parametrize("name", WITH_INTENSITY)
def test_the_scheme_is_the_recipes(name):
    steps = published_models()[name].recipe["steps"]
    kinds = ("rescale", "z_score")
    recipe = {"orientation": "RAS", "steps": [step for step in steps if {*step} & {*kinds}]}
    image = np.random.default_rng(0).normal(0, 900, (6, 7, 8)).astype(np.float32)
    image[:2] = 0
    scheme = stated_input(name, {})["intensity"]
    ours = NormalizeChannelsd("image", [scheme])({"image": torch.from_numpy(image)[None]})["image"]
    expected = recipe_transform(recipe)(nib.Nifti1Image(image, np.eye(4)))
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_spacing_and_intensities_go_into_the_plan_unless_given():
    stated = stated_input("weights.pt", {"published": "colipri"})
    assert stated["spacing_mm"] == [2.0, 2.0, 2.0]
    plan = plan_segmentation(Evidence(fingerprint(), 40, stated=stated), {"device": "cpu"})
    assert (plan["spacing_mm"], plan["intensity"]) == ([2.0, 2.0, 2.0], [stated["intensity"]])
    plan = plan_segmentation(
        Evidence(fingerprint(), 40, stated=stated), {"device": "cpu", "spacing_mm": [1.0, 1.0, 1.0]}
    )
    assert plan["spacing_mm"] == [1.0, 1.0, 1.0]
    assert stated_input("weights.pt", {}) == {}


ORIENTED = [name for name in published_models() if "orientation" in stated_input(name, {})]


@pytest.mark.slow
@pytest.mark.parametrize("name", ORIENTED)
def test_the_orientation_is_the_recipes(name):
    stated = stated_input(name, {})
    assert stated["orientation"] == published_models()[name].recipe["orientation"]
    facts = fingerprint(spacing=(0.7, 0.8, 2.0), shape=(200, 180, 60))
    plain = plan_segmentation(Evidence(facts, 40), {"device": "cpu"})
    plan = plan_segmentation(Evidence(facts, 40, stated={"orientation": stated["orientation"]}), {"device": "cpu"})
    assert plan["orientation"] == stated["orientation"]
    turn = [next("RAS".index(c) for c in pair if c in "RAS") for pair in map(_both_ends, plan["orientation"])]
    for key in ("spacing_mm", "patch_size", "rotate_range"):
        assert plan[key] == [plain[key][axis] for axis in turn], key
    assert {turn[axis] for axis in plan["flip_axes"]} == {*plain["flip_axes"]}


def _both_ends(letter):
    return next(pair for pair in ("RL", "AP", "SI") if letter in pair)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ["SPL", "SAR"])
def test_a_file_gives_one_input_however_its_axes_are_stored(tmp_path, orientation):
    data = write_toy_mr(tmp_path / "data", "folders", cases=3, testing=0, shape=(24, 20, 10))
    given = {"orientation": orientation, "intensity": [{"scheme": "z"}], "window": [8, 16, 16], "patch_size": [1, 8, 8]}
    report = plan_bundle(data, tmp_path / "toy", overrides=given)
    position = orientation.index("S")
    assert report.plan["spacing_mm"] == pytest.approx([5.0 if axis == position else 0.5 for axis in range(3)])
    parser = ConfigParser()
    parser.read_config(str(report.bundle / "configs" / "inference.yaml"))
    parser.read_meta(str(report.bundle / "configs" / "metadata.json"))
    prepare = parser.get_parsed_content("preprocessing")
    image = nib.load(report.dataset.cases[1].images[0])
    for stored in ("RAS", "LIP", "PSR", orientation):
        nib.save(_turned(image, stored), tmp_path / f"{stored}.nii.gz")
        values = np.asarray(prepare({"image": str(tmp_path / f"{stored}.nii.gz")})["image"])[0]
        expected = _turned(image, orientation).get_fdata()
        np.testing.assert_allclose(values, (expected - expected.mean()) / expected.std(), atol=1e-4)


def _turned(image, axcodes):
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes)))
