"""The feature pyramid: each level written out in torch's functions, their sum, and who reaches whom."""

import pytest
import torch
import torch.nn.functional as F

from monai_vit3d.decoders import PyramidDecoder
from tests.decoders.decoder_parts import idle, noise, noisy, norm


@torch.no_grad()
def test_equals_the_paper_written_out():
    patch = (8, 8, 2)
    net, tokens = noisy("pyramid", patch), noise(2, 12, 2, 3, 2)
    one, two, four = net.levels

    def lateral(x, parts):
        x = norm(F.conv3d(x, parts[0].weight, parts[0].bias), parts[1])
        return norm(F.conv3d(x, parts[2].weight, parts[2].bias, padding=1), parts[3])

    coarse = lateral(tokens, one)
    middle = lateral(F.conv_transpose3d(tokens, two[0].weight, two[0].bias, stride=2), two[1:])
    x = F.gelu(norm(F.conv_transpose3d(tokens, four[0].weight, four[0].bias, stride=2), four[1]))
    fine = lateral(F.conv_transpose3d(x, four[3].weight, four[3].bias, stride=(2, 2, 1)), four[4:])
    assert [x.shape[2:] for x in (coarse, middle, fine)] == [(2, 3, 2), (4, 6, 4), (8, 12, 4)]
    total = F.interpolate(coarse, (4, 6, 4), mode="trilinear") + middle
    total = F.interpolate(total, (8, 12, 4), mode="trilinear") + fine
    logits = F.conv3d(F.gelu(total), net.head.weight, net.head.bias)
    expected = F.interpolate(logits, (16, 24, 4), mode="trilinear")
    torch.testing.assert_close(net(torch.zeros(2, 1, 16, 24, 4), [tokens]), expected, atol=1e-5, rtol=1e-5)


def test_widths_are_those_of_unetr():
    net = PyramidDecoder(1, 768, 16, 14)
    chain = [m.weight.shape[:2] for m in net.levels[3] if isinstance(m, torch.nn.ConvTranspose3d)]
    assert chain == [(768, 128), (128, 64), (64, 32)]
    assert net.head.weight.shape[:2] == (14, 32)


@pytest.mark.parametrize("patch", [(8, 8, 2), (6, 6, 6), (2, 2, 2), (1, 8, 8)], ids=str)
def test_every_parameter_learns_from_one_token(patch):
    net, tokens = noisy("pyramid", patch), noise(2, 12, 1, 1, 1).requires_grad_()
    out = net(noise(2, 1, *patch), [tokens])
    (out * noise(*out.shape, seed=2)).sum().backward()
    assert tokens.grad.abs().min() > 0
    assert idle(net) == set()
