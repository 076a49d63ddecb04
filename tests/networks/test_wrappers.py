"""The network inside its wrappers, and its state under the names that it has without them."""

from itertools import permutations

import pytest
import torch
from torch import nn

from monai_vit3d.networks.wrappers import load_plain_state_dict, plain_state_dict, unwrap_network

WRAPPERS = {"compile": lambda net: torch.compile(net, backend="eager"), "parallel": nn.DataParallel}


def small():
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))


@pytest.mark.parametrize("order", [*permutations(WRAPPERS), ("compile",), ("parallel",), ()], ids=str)
def test_unwrapped_finds_the_network_in_any_order(order):
    net = wrapped = small()
    for name in order:
        wrapped = WRAPPERS[name](wrapped)
    assert unwrap_network(wrapped) is net


@pytest.mark.parametrize("value", [None, 3, nn.ModuleDict({"module": nn.Linear(1, 1)}), torch.zeros(2)], ids=str)
def test_what_is_no_wrapper_stays(value):
    assert unwrap_network(value) is value


@pytest.mark.parametrize("whole", [None, *WRAPPERS])
@pytest.mark.parametrize("part", [None, *WRAPPERS])
@pytest.mark.parametrize("inner", [None, *WRAPPERS])
def test_names_and_values_are_those_without_wrappers(whole, part, inner):
    net, plain = small(), small()
    if inner:
        net[1][0] = WRAPPERS[inner](net[1][0])
    if part:
        net[1] = WRAPPERS[part](net[1])
    if whole:
        net = WRAPPERS[whole](net)
    load_plain_state_dict(net, plain.state_dict())
    found, expected = plain_state_dict(net), plain.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    plain.load_state_dict(found)


def test_other_names_are_refused():
    with pytest.raises(RuntimeError, match="nowhere"):
        load_plain_state_dict(small(), {**small().state_dict(), "nowhere": torch.zeros(1)})
