"""PrepareBatchMixUp mixes images and targets with the same weights, drawn from torch's stream alone."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate

from monai_vit3d.handlers import PrepareBatchMixUp

CASES = 6


def batch(cases=CASES):
    """Random volumes, and targets that name each case: a mixed target is its row of the mixing matrix."""
    image = torch.randn(cases, 2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    return {"image": image, "label": torch.eye(cases)}


def collated(cases=CASES):
    """The same batch as a loader makes it of volumes that came from files, each with its own affine."""
    data = batch(cases)
    pairs = zip(data["image"], data["label"])
    affines = [torch.diag(torch.tensor([i + 1.0, 2, 3, 1])) for i in range(cases)]
    items = [{"image": MetaTensor(x, affine=a), "label": MetaTensor(y)} for (x, y), a in zip(pairs, affines)]
    return list_data_collate(items)


def mixed(alpha, seed=0):
    torch.manual_seed(seed)
    return PrepareBatchMixUp(alpha)(batch())


def test_alpha_of_zero_leaves_the_batch_as_it_is():
    data = batch()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    image, target = PrepareBatchMixUp(0)(data)
    assert image is data["image"]
    assert target is data["label"]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5])
@pytest.mark.parametrize("make", [batch, collated])
def test_image_and_target_share_their_weights(alpha, make):
    data = make()
    torch.manual_seed(0)
    image, target = PrepareBatchMixUp(alpha)(data)
    assert image.shape == data["image"].shape
    assert (image - data["image"]).abs().max() > 0.1
    weights = target.double()  # row i: how much of each case is in case i
    want = torch.einsum("ij,jchwd->ichwd", weights, batch()["image"].double())
    np.testing.assert_allclose(image.numpy(), want.numpy(), atol=1e-5)
    assert type(image) is type(target) is torch.Tensor  # a mixture has no affine
    for key, value in make().items():
        assert torch.equal(data[key], value)  # what came is left alone


@pytest.mark.parametrize("seed", range(5))
def test_targets_stay_distributions_of_two_cases(seed):
    _, target = mixed(1.0, seed)
    assert target.min() >= 0
    torch.testing.assert_close(target.sum(1), torch.ones(CASES))
    # every case is the partner of one: the others' shares lie on a permutation
    others = (target - target.diag().diag()) > 0
    assert others.sum(0).max() <= 1
    assert others.sum(1).max() <= 1
    assert others.any()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_weights_come_from_a_beta_distribution(alpha):
    torch.manual_seed(0)
    count = 2000
    _, target = PrepareBatchMixUp(alpha)({"image": torch.zeros(count, 1, 1, 1, 1), "label": torch.eye(count)})
    own = target.diag()
    own = own[own < 1]  # a case may be its own partner
    assert own.mean().item() == pytest.approx(0.5, abs=0.03)
    assert own.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_torchs_seed_alone_decides():
    np.random.seed(0)
    first = mixed(0.5, seed=7)
    np.random.seed(1)
    again, other = mixed(0.5, seed=7), mixed(0.5, seed=8)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_each_batch_is_mixed_anew():
    torch.manual_seed(0)
    prepare = PrepareBatchMixUp(0.5)
    assert not torch.equal(prepare(batch())[1], prepare(batch())[1])


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_batch_goes_to_the_device_and_type_asked_for(alpha):
    # a device without memory stands for any that MONAI's own weights are not on
    image, target = PrepareBatchMixUp(alpha)(batch(), device="meta", dtype=torch.float64)
    for part in (image, target):
        assert part.device.type == "meta"
        assert part.dtype is torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("source", ["cpu", "cuda"])
def test_gpu_gets_the_same_batch(source):
    want = mixed(0.5)
    torch.manual_seed(0)
    got = PrepareBatchMixUp(0.5)({key: value.to(source) for key, value in batch().items()}, device="cuda")
    assert got[0].is_cuda
    assert torch.equal(got[0].cpu(), want[0])
    assert torch.equal(got[1].cpu(), want[1])


@pytest.mark.parametrize("alpha", [-1, -0.001])
def test_negative_alpha_refused(alpha):
    with pytest.raises(ValueError, match=rf"^alpha={alpha}; expected 0 \(no mixup\) or a positive number"):
        PrepareBatchMixUp(alpha)
