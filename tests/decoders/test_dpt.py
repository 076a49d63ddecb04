"""DPT's decoder: each tap's level, the fusion written out in torch's functions, a gradient for every map."""

import pytest
import torch
import torch.nn.functional as F

from tests.decoders.decoder_parts import idle, maps_for, noise, noisy, norm


def unit(x, module):
    y = x
    for conv, layer_norm in ((module.body[1], module.body[2]), (module.body[4], module.body[5])):
        y = norm(F.conv3d(F.relu(y), conv.weight, conv.bias, padding=1), layer_norm)
    return x + y


@torch.no_grad()
def test_equals_the_paper_written_out():
    patch = (8, 8, 2)
    net, maps = noisy("dpt", patch), maps_for("dpt", patch)
    levels = []
    for parts, tokens, factor in zip(net.reassemble, reversed(maps), [(1, 1, 1), (2, 2, 2), (4, 4, 2)]):
        x = torch.einsum("bihwd,oi->bohwd", tokens, parts[0].weight[..., 0, 0, 0]) + parts[0].bias[:, None, None, None]
        if factor != (1, 1, 1):
            x = F.conv_transpose3d(x, parts[1].weight, parts[1].bias, stride=factor)
        levels.append(F.conv3d(x, parts[-1].weight, padding=1))
    assert [x.shape[1:] for x in levels] == [(8, 2, 3, 2), (8, 4, 6, 4), (8, 8, 12, 4)]
    x = unit(levels[0], net.fused_units[0])
    x = F.interpolate(x, (4, 6, 4), mode="trilinear") + unit(levels[1], net.level_units[0])
    x = unit(x, net.fused_units[1])
    x = F.interpolate(x, (8, 12, 4), mode="trilinear") + unit(levels[2], net.level_units[1])
    x = unit(x, net.fused_units[2])
    x = F.relu(norm(F.conv3d(x, net.head[0].weight, net.head[0].bias, padding=1), net.head[1]))
    expected = F.interpolate(F.conv3d(x, net.head[3].weight, net.head[3].bias), (16, 24, 4), mode="trilinear")
    torch.testing.assert_close(net(torch.zeros(2, 1, 16, 24, 4), maps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [(8, 8, 2), (6, 6, 6), (2, 2, 2), (1, 8, 8)], ids=str)
def test_every_parameter_and_every_tap_learns(patch):
    net, maps = noisy("dpt", patch), [m.requires_grad_() for m in maps_for("dpt", patch)]
    size = [g * p for g, p in zip((2, 3, 2), patch)]
    out = net(noise(2, 1, *size), maps)
    (out * noise(*out.shape, seed=2)).sum().backward()
    assert all(m.grad.abs().max() > 0 for m in maps)
    assert idle(net) == set()
