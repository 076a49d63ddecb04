"""Averages of several networks' probabilities, against the mean in float64; scripted, exported, by OpenVINO."""

import copy
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import BackendNetwork
from monai_vit3d.networks import FoldEnsemble
from tests.pipeline.fold_bundle import segmenter

IMAGE = torch.randn(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
PROBABILITIES = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "mean": lambda x: x}


class Given(nn.Module):
    """A network whose output is given."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.fixture(scope="module")
def members():
    return [segmenter(seed) for seed in range(3)]


@pytest.mark.parametrize("average", PROBABILITIES)
@torch.no_grad()
def test_the_mean_of_probabilities_in_float64(members, average):
    exact = [copy.deepcopy(member).double()(IMAGE.double()) for member in members]
    expected = torch.stack([PROBABILITIES[average](output) for output in exact]).mean(0)
    output = FoldEnsemble(members, average)(IMAGE)
    torch.testing.assert_close(PROBABILITIES[average](output).double(), expected, atol=1e-6, rtol=1e-5)
    if average == "softmax":  # the log of probabilities itself, which sum to 1
        torch.testing.assert_close(output.double(), expected.log(), atol=1e-5, rtol=1e-5)


@given(st.lists(st.lists(st.floats(-300, 300), min_size=3, max_size=3), min_size=2, max_size=5), st.data())
def test_no_logits_overflow_or_vanish(rows, data):
    average = data.draw(st.sampled_from(["softmax", "sigmoid"]))
    logits = torch.tensor(rows, dtype=torch.float64)
    networks = [Given(row.float()[None]) for row in logits]
    output = FoldEnsemble(networks, average)(torch.zeros(1)).double()
    assert torch.isfinite(output).all()
    expected = PROBABILITIES[average](logits[:, None].transpose(1, 2)[..., 0][..., None]).mean(0)
    found = PROBABILITIES[average](output[..., None])[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("average", PROBABILITIES)
@torch.no_grad()
def test_scripted(members, average):
    ensemble = FoldEnsemble(members[:2], average)
    torch.testing.assert_close(torch.jit.script(ensemble)(IMAGE), ensemble(IMAGE))


@pytest.mark.slow
@torch.no_grad()
def test_exported_and_by_openvino(members):
    ensemble = FoldEnsemble(members).eval()
    expected = ensemble(IMAGE)
    torch.testing.assert_close(torch.export.export(ensemble, (IMAGE,)).module()(IMAGE), expected)
    if find_spec("openvino"):
        torch.testing.assert_close(BackendNetwork(ensemble, "openvino")(IMAGE), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_half_precision_is_averaged_in_float32_and_metadata_stay(members):
    ensemble = FoldEnsemble(members)
    image = MetaTensor(IMAGE, affine=torch.eye(4) * 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = ensemble(image)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.as_tensor().softmax(1), ensemble(IMAGE).softmax(1), atol=0.05, rtol=0.05)
    assert torch.equal(output.affine, image.affine)


@pytest.mark.parametrize(
    ("networks", "average", "words"),
    [
        (lambda: [segmenter(0)], "softmax", r"1 network\(s\); two or more"),
        (lambda: [segmenter(0), segmenter(1, classes=4)], "softmax", "num_classes 3, 4"),
        (lambda: [segmenter(0), segmenter(1, channels=1)], "softmax", "in_chans 2, 1"),
        (lambda: [segmenter(0), segmenter(1)], "median", "average='median'; expected one of softmax, sigmoid, mean"),
        (lambda: [segmenter(0, classes=1), segmenter(1, classes=1)], "softmax", "Give 'sigmoid' or 'mean'"),
    ],
)
def test_what_makes_no_ensemble(networks, average, words):
    with pytest.raises(UsageError, match=words):
        FoldEnsemble(networks(), average)
