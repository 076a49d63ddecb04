"""Flips at test time against direct sums in float64; variance and entropy against numpy."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import (
    AutocastInferer,
    FlipEnsemble,
    FlipInferer,
    FlipSpread,
    ensemble_variance,
    predictive_entropy,
    stitch_windows,
)

AXES = [(), (0,), (1,), (2,), (0, 2), (2, 1), (0, 1, 2)]


def network(classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, classes, 3, padding=1)).to(dtype)


def classifier():
    return nn.Sequential(network(), nn.Flatten(), nn.Linear(3 * 5 * 4 * 6, 2, dtype=torch.float64))


def volume(dtype=torch.float64):
    return torch.randn(2, 1, 5, 4, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def runs(net, x, axes, back=True):
    """Every flip's output in numpy, flipped back: ``(2 ** len(axes), B, K, ...)``."""
    outputs = []
    for switches in product([False, True], repeat=len(axes)):
        dims = [axis + 2 for axis, on in zip(axes, switches) if on]
        output = net(torch.from_numpy(np.flip(x.numpy(), dims).copy())).detach().numpy()
        outputs.append(np.flip(output, dims) if back else output)
    return np.stack(outputs)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def close(ours, reference, atol=1e-12):
    np.testing.assert_allclose(ours.detach().numpy(), reference, rtol=0, atol=atol)


@pytest.mark.parametrize("axes", AXES)
def test_maps_are_flipped_back_and_averaged(axes):
    net, x = network(), volume()
    expected = runs(net, x, axes)
    assert len(expected) == 2 ** len(axes)
    close(FlipEnsemble(net, axes)(x), expected.mean(0))
    if axes:
        assert np.abs(expected.mean(0) - expected[0]).max() > 1e-3


def test_all_axes_unless_told():
    net, x = network(), volume()
    assert torch.equal(FlipEnsemble(net)(x), FlipEnsemble(net, (0, 1, 2))(x))


@pytest.mark.parametrize("axes", AXES)
def test_vectors_are_averaged_as_they_are(axes):
    net, x = classifier(), volume()
    close(FlipEnsemble(net, axes)(x), runs(net, x, axes, back=False).mean(0))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("cls", [FlipEnsemble, FlipSpread])
def test_a_flipped_volume_has_the_flipped_answer(cls, axes):
    ensemble, x = cls(network(), axes), volume()
    for axis in axes:
        torch.testing.assert_close(ensemble(x.flip(axis + 2)), ensemble(x).flip(axis + 2), rtol=0, atol=1e-6)
    for axis in {0, 1, 2} - set(axes):
        assert (ensemble(x.flip(axis + 2)) - ensemble(x).flip(axis + 2)).abs().max() > 1e-3


def test_sums_are_not_rounded_to_the_networks_type():
    net, x = network(dtype=torch.bfloat16), volume(torch.bfloat16)
    out = FlipEnsemble(net)(x)
    assert out.dtype is torch.float32
    outputs = torch.stack(
        [net(x.flip(d)).flip(d).double() for d in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4])]
    )
    torch.testing.assert_close(out.double(), outputs.mean(0), rtol=0, atol=1e-6)


def test_the_networks_own_output_is_left_as_it_was():
    x = volume()
    before = x.clone()
    torch.testing.assert_close(FlipEnsemble(nn.Identity())(x), before)
    assert torch.equal(x, before)


def test_parameters_train_and_move_with_it():
    net = network()
    ensemble = FlipEnsemble(net, (0,))
    assert list(ensemble.parameters()) == list(net.parameters())
    ensemble(volume()).sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("back", [True, False])
def test_spread_has_the_means_that_variance_needs(activation, back):
    net, x = (network(), volume()) if back else (classifier(), volume())
    logits = runs(net, x, (0, 1, 2), back)
    p = softmax(logits, 2) if activation == "softmax" else 1 / (1 + np.exp(-logits))
    stacked = FlipSpread(net, activation=activation)(x)
    close(stacked, np.concatenate([logits.mean(0), p.mean(0), (p**2).mean(0)], 1))
    variance = ensemble_variance(stacked, logits.shape[2])
    close(variance, p.var(0).sum(1, keepdims=True))
    assert variance.shape[1] == 1
    assert variance.max() > 1e-4


def test_no_spread_without_flips():
    net = network(dtype=torch.float32)
    variance = ensemble_variance(FlipSpread(net, axes=())(volume(torch.float32)), 3)
    assert variance.max() < 1e-6


def test_rounding_gives_no_negative_variance():
    p = torch.full((1, 3, 2, 2, 2), 1 / 3)
    assert (ensemble_variance(torch.cat([p, p, p * p - 1e-8], 1), 3) == 0).all()
    torch.testing.assert_close(
        ensemble_variance(torch.cat([p, p, p * p + 0.1], 1), 3), torch.full((1, 1, 2, 2, 2), 0.3)
    )


def test_spread_goes_through_the_windows():
    """Stitched under autocast, its three parts are what each would be alone."""
    net, x = network(dtype=torch.float32), volume(torch.float32)[:1]
    inferer = AutocastInferer(SlidingWindowInferer((4, 4, 4), 2, 0.5, "gaussian"))
    with torch.no_grad():
        stacked = stitch_windows(x, FlipSpread(net), inferer, lambda planes: planes)
        mean = inferer(x, FlipEnsemble(net))
    assert torch.equal(stacked[:, :3], mean)
    torch.testing.assert_close(stacked[:, 3:6].sum(1), torch.ones(1, 5, 4, 6))
    assert ensemble_variance(stacked, 3).max() > 1e-5


def entropy(logits, activation):
    logits = logits.numpy().astype(np.float64)
    if activation == "softmax":
        p, norm = softmax(logits, 1), np.log(logits.shape[1])
        return -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(1, keepdims=True) / norm
    p, q = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits))
    return -(p * np.log(p) + q * np.log(q)).mean(1, keepdims=True) / np.log(2)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@given(classes=st.integers(2, 6), scale=st.floats(0, 30), seed=st.integers(0, 99))
def test_entropy_is_the_direct_sum_and_within_0_and_1(activation, classes, scale, seed):
    logits = scale * torch.randn(2, classes, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    ours = predictive_entropy(logits, activation)
    assert ours.shape == (2, 1, 3, 4, 5)
    assert ours.min() >= 0
    assert ours.max() <= 1
    close(ours, entropy(logits, activation), atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_entropy_at_the_ends(activation):
    def of(*logits, dtype=torch.float32):
        return predictive_entropy(torch.tensor([logits], dtype=dtype), activation).item()

    assert of(0, 0, 0) == pytest.approx(1, abs=1e-6)
    assert of(1e4, -1e4, -1e4) == 0
    assert of(float("inf"), -float("inf")) == 0 if activation == "sigmoid" else of(0, -float("inf")) == 0
    # 1 - p is below float32's step at 1, and the entropy is still there
    small = of(40, -40) if activation == "sigmoid" else of(40, 0)
    p = np.exp(-40.0)
    assert small == pytest.approx(p * 41 / np.log(2), rel=1e-4)
    assert predictive_entropy(torch.zeros(1, 3, dtype=torch.bfloat16), activation).dtype is torch.float32


def test_what_is_refused():
    for axes in [(0, 0), (-1,), (1, -1)]:
        with pytest.raises(UsageError, match="axes="):
            FlipEnsemble(network(), axes)
    with pytest.raises(UsageError, match="3 spatial axes"):
        FlipEnsemble(network(), (0, 3))(volume())
    with pytest.raises(UsageError, match="2 spatial axes"):
        FlipEnsemble(nn.Identity())(torch.zeros(1, 1, 4, 4))
    with pytest.raises(UsageError, match=r"network: a tuple; expected one tensor"):
        FlipEnsemble(lambda_module(lambda x: (x, x)))(volume())
    with pytest.raises(UsageError, match=r"network: \(2, 1, 5\)"):
        FlipEnsemble(lambda_module(lambda x: x[..., 0, 0]))(volume())
    with pytest.raises(UsageError, match="activation='relu'"):
        FlipSpread(network(), activation="relu")
    with pytest.raises(UsageError, match="activation=''"):
        predictive_entropy(torch.zeros(1, 3), "")
    with pytest.raises(UsageError, match="2 classes or more"):
        predictive_entropy(torch.zeros(1, 1, 4), "softmax")
    with pytest.raises(UsageError, match="8 channels; expected 3 x 3"):
        ensemble_variance(torch.zeros(1, 8, 2, 2, 2), 3)


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


@pytest.mark.parametrize("axes", AXES)
def test_an_inferer_averages_over_flips(axes):
    net, x = classifier().eval(), volume()
    with torch.no_grad():
        expected = runs(net, x, axes, back=False).mean(0)
        np.testing.assert_allclose(FlipInferer(axes)(x, net).numpy(), expected, atol=1e-12)
        inner = SlidingWindowInferer((4, 4, 4), overlap=0.5)
        found = FlipInferer(axes, inner)(x, network())
        flips = [tuple(a + 2 for a, on in zip(axes, one) if on) for one in product((0, 1), repeat=len(axes))]
        direct = torch.stack([inner(x.flip(dims), network()).flip(dims) for dims in flips]).mean(0)
    np.testing.assert_allclose(found.numpy(), direct.numpy(), atol=1e-12)


def test_an_inferers_axes_are_checked_at_once():
    with pytest.raises(UsageError, match=r"axes=\(1, 1\): expected spatial axes"):
        FlipInferer([1, 1])
