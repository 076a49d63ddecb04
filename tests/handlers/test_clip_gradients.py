"""The gradient that the optimizer gets is as long as max_norm at most, and points where it did."""

import pytest
import torch
from torch import nn

from monai_vit3d.handlers import ClipGradients
from tests.handlers.trainings import trainer


def step(max_norm):
    """The change of the weights (3 and 1) in one step of SGD with rate 1: minus the gradient."""
    network = nn.Linear(3, 1)
    nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    trainer([ClipGradients(network, max_norm)], network, 1, 1, optimizer=optimizer).run()
    return torch.cat([network.weight.detach()[0], network.bias.detach()]).double()


def test_long_gradients_are_scaled_and_short_ones_are_not():
    gradient = 2 * torch.ones(4, dtype=torch.float64)  # of (0 - 1)^2, length 4
    assert torch.equal(step(None), gradient)
    assert torch.equal(step(5.0), gradient)
    assert step(1.0).numpy() == pytest.approx((gradient / 4).numpy(), rel=1e-5)


@pytest.mark.parametrize("norm", [0, -1.0, float("nan")])
def test_a_norm_that_is_not_positive_is_refused(norm):
    with pytest.raises(ValueError, match="max_norm"):
        ClipGradients(nn.Linear(1, 1), norm)
