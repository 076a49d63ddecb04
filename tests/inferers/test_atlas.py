"""What an atlas adds to logits: its own answer where the network says nothing, and Bayes' rule elsewhere."""

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer

from monai_vit3d.data import ImageError
from monai_vit3d.inferers import AtlasInferer
from monai_vit3d.transforms import save_atlas

CLASSES = 4


@pytest.fixture(scope="module")
def probabilities():
    drawn = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.5), (6, 5, 4)).astype(np.float32)
    return torch.from_numpy(drawn).movedim(-1, 0)


@pytest.fixture
def atlas(probabilities, tmp_path):
    save_atlas(probabilities, tmp_path / "atlas.nii.gz", 4.0, (0.0, 0.0, 6.0))
    return tmp_path / "atlas.nii.gz"


def silent(x):
    return torch.zeros(len(x), CLASSES, *x.shape[2:])


def test_the_file_is_the_atlas_in_eight_bits(probabilities, atlas):
    import nibabel as nib

    image = nib.load(atlas)
    np.testing.assert_allclose(image.get_fdata(), probabilities.movedim(0, -1), atol=0.5 / 255 + 1e-6)
    assert image.header.get_zooms()[:3] == (4, 4, 4)
    middle = nib.affines.apply_affine(image.affine, (np.array([6, 5, 4]) - 1) / 2)
    np.testing.assert_allclose(middle, (0, 0, 6), atol=1e-5)


def test_a_network_that_says_nothing_gets_the_atlas(probabilities, atlas):
    logits = AtlasInferer(SimpleInferer(), atlas, CLASSES)(torch.zeros(2, 1, 6, 5, 4), silent)
    for one in logits.softmax(1):
        torch.testing.assert_close(one, probabilities, atol=0.02, rtol=0)


def test_bayes_rule(probabilities, atlas):
    likelihoods = torch.rand(1, CLASSES, 6, 5, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    logits = AtlasInferer(SimpleInferer(), atlas, CLASSES)(torch.zeros(1, 1, 6, 5, 4), lambda x: likelihoods.log())
    joint = likelihoods[0].double() * probabilities.double()
    torch.testing.assert_close(logits[0].softmax(0).double(), joint / joint.sum(0), atol=0.03, rtol=0)


def test_its_voxels_may_be_larger(probabilities, atlas):
    logits = AtlasInferer(SimpleInferer(), atlas, CLASSES)(torch.zeros(1, 1, 18, 15, 12), silent)
    inner = logits[0].softmax(0)[:, 1::3, 1::3, 1::3]  # the middles of its voxels
    torch.testing.assert_close(inner, probabilities, atol=0.02, rtol=0)


def test_another_number_of_classes_is_refused(atlas):
    with pytest.raises(ImageError, match=r"atlas.nii.gz.*5"):
        AtlasInferer(SimpleInferer(), atlas, 5)
