"""One digest for the same values, another for others, whatever the type."""

import copy

import pytest
import torch
from torch import nn

from monai_vit3d.networks.weights_sha256 import weights_sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_the_digest_is_that_of_the_values(dtype):
    torch.manual_seed(0)
    network = nn.Linear(3, 2).to(dtype)
    other = copy.deepcopy(network)
    same = weights_sha256([network])
    assert weights_sha256([other]) == same
    assert weights_sha256([network, other]) != same
    with torch.no_grad():
        other.bias[1] = torch.nextafter(other.bias[1], other.bias[1] + 1) if dtype is torch.float32 else 7
    assert weights_sha256([other]) != same
    other.weight.data = other.weight.data.t().contiguous().t()  # another layout in memory is no other value
    other.bias.data = network.bias.data
    assert weights_sha256([other]) == same
    network.bias.data = network.bias.data[:0]
    assert len(weights_sha256([network])) == 64
