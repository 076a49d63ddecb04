"""DPT's decoder: each tap's level, the fusion written out in torch's functions, a gradient for every map."""

import pytest
import torch
import torch.nn.functional as F

from monai_vit3d.decoders import DPTDecoder


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoder(patch, **options):
    torch.manual_seed(1)
    return DPTDecoder(1, 12, patch, 3, **{"feature_size": 4, **options}).eval()


def maps_for(patch, grid=(2, 3, 2), batch=2):
    return [noise(batch, 12, *grid, seed=i) for i in range(DPTDecoder.num_maps(patch))]


def norm(x, module):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    shape = (-1, 1, 1, 1)
    return (x - mean) / (var + 1e-5).sqrt() * module.weight.view(shape) + module.bias.view(shape)


def unit(x, module):
    y = x
    for conv, layer_norm in ((module.body[1], module.body[2]), (module.body[4], module.body[5])):
        y = norm(F.conv3d(F.relu(y), conv.weight, conv.bias, padding=1), layer_norm)
    return x + y


@torch.no_grad()
def test_equals_the_paper_written_out():
    patch = (8, 8, 2)
    net, maps = decoder(patch), maps_for(patch)
    for parameter in net.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
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
    net, maps = decoder(patch), [m.requires_grad_() for m in maps_for(patch)]
    size = [g * p for g, p in zip((2, 3, 2), patch)]
    out = net(noise(2, 1, *size), maps)
    (out * noise(*out.shape, seed=2)).sum().backward()
    assert all(m.grad.abs().max() > 0 for m in maps)
    assert {n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9} == set()
