"""What is stated of published encoders, in a plan: the values that their own preparation gives."""

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_vit3d.data.published_models import published_models
from monai_vit3d.planning.plan import Evidence
from monai_vit3d.planning.published_recipe import stated_input
from monai_vit3d.planning.segmentation import plan_segmentation
from monai_vit3d.transforms import NormalizeChannelsd
from monai_vit3d.weights.recipes import recipe_transform
from tests.planning.evidence import fingerprint

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
