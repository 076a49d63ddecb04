"""Labels of an inferer against the argmax of the one that it is around, and in a bundle."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose
from torch import nn

from monai_vit3d.data.errors import ImageError, UsageError
from monai_vit3d.inferers import AutocastInferer, LabelInferer
from tests.bundles.helpers import run_here
from tests.helpers import HIPPOCAMPUS


class Odd(SlidingWindowInferer):
    """One that may do anything."""


def network(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.GELU(), nn.Conv3d(8, classes, 1)).eval()


def volumes(batch=2):
    return torch.randn(batch, 2, 20, 17, 15, generator=torch.Generator().manual_seed(1))


INFERERS = {
    "stitched": SlidingWindowInferer((8, 8, 8), 3, 0.5, mode="gaussian"),
    "in bfloat16": AutocastInferer(SlidingWindowInferer((8, 8, 8), 1, 0.25)),
    "as it is": Odd((8, 8, 8), 3, 0.5, mode="gaussian"),
    "whole": SimpleInferer(),
}


@pytest.mark.parametrize("name", INFERERS)
@pytest.mark.parametrize("classes", [1, 5, 300])
def test_the_likeliest_class(name, classes):
    net, x = network(classes), volumes()
    with torch.no_grad():
        expected = INFERERS[name](x, net).argmax(1, keepdim=True)
        found = LabelInferer(INFERERS[name])(x, net)
    assert found.dtype is (torch.uint8 if classes <= 256 else torch.int16)
    assert torch.equal(found.long(), expected)


def test_a_half_is_inside_as_in_monai():
    x = torch.tensor([0.0, -1e-9, 1e-9, -1.0, 1.0]).reshape(1, 1, 5, 1, 1)
    steps = Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)])
    found = LabelInferer(SimpleInferer(), "sigmoid")(x, nn.Identity())
    assert torch.equal(found[0].float(), steps({"pred": x[0]})["pred"])


@pytest.mark.parametrize("name", INFERERS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_entropy_and_probabilities(name, activation):
    net, x = network(), volumes()
    with torch.no_grad():
        logits = INFERERS[name](x, net).double()
        found = LabelInferer(INFERERS[name], activation, entropy=True, probabilities=True)(x, net)
    p = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    labels = logits.argmax(1, keepdim=True) if activation == "softmax" else logits.float().sigmoid() >= 0.5
    if activation == "softmax":
        entropy = -(p * p.log2()).sum(1, keepdim=True) / np.log2(5)
    else:
        entropy = -(p * p.log2() + (1 - p) * (1 - p).log2()).mean(1, keepdim=True)
    count = labels.shape[1]
    assert found.dtype is torch.float32
    torch.testing.assert_close(found[:, :count], labels.float(), atol=0, rtol=0)
    torch.testing.assert_close(found[:, count : count + 1], entropy.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, count + 1 :], p.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", INFERERS)
def test_labels_lie_where_the_image_lies(name):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    with torch.no_grad():
        found = LabelInferer(INFERERS[name])(MetaTensor(volumes(1), affine=affine), network())
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine.double(), affine.double())


@pytest.mark.parametrize("name", INFERERS)
def test_nan_is_no_label(name):
    x = volumes()
    x[1, 0, 3, 3, 3] = float("nan")
    with torch.no_grad(), pytest.raises(ImageError, match="NaN or infinite"):
        LabelInferer(INFERERS[name])(x, network())


def test_a_network_of_another_size_is_reduced_afterwards():
    net = nn.Sequential(network(), nn.AvgPool3d(2)).eval()
    inferer = SlidingWindowInferer((8, 8, 8), 3, 0.5)
    with torch.no_grad():
        assert torch.equal(
            LabelInferer(inferer)(volumes(), net).long(), inferer(volumes(), net).argmax(1, keepdim=True)
        )


def test_an_unknown_activation():
    with pytest.raises(UsageError, match="activation='tanh'; expected one of 'softmax', 'sigmoid'"):
        LabelInferer(SimpleInferer(), "tanh")


@pytest.mark.slow
def test_in_a_bundle(tmp_path):
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).normal(100, 20, (36, 50, 34)).astype(np.float32)
    nib.Nifti1Image(voxels, np.diag([1.2, 1, 1, 1])).to_filename(tmp_path / "in" / "a.nii.gz")
    labels = {}
    own = {"_target_": "monai_vit3d.inferers.LabelInferer", "inferer": "@bundles_inferer"}
    windows = {"_target_": "SlidingWindowInferer", "roi_size": "@window", "sw_batch_size": 4, "overlap": 0.5}
    for name, options in {
        "numbers": {"inferer": "@bundles_inferer"},
        "labels": {"inferer": own, "postprocessing#transforms": "$@labelling[1:] + [@saving]"},
    }.items():
        folders = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / name, "bundles_inferer": windows}
        run_here(HIPPOCAMPUS, "inference", device=torch.device("cpu"), **folders, **options)
        labels[name] = np.asarray(nib.load(tmp_path / name / "a_seg.nii.gz").dataobj)
    assert labels["numbers"].any()
    np.testing.assert_array_equal(labels["labels"], labels["numbers"])
