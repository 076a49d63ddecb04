"""Features straight from the image at the finest levels: where they go, and that one level is UNETR."""

import pytest
import torch

from tests.decoders.decoder_parts import fresh, maps_for, noise, noisy


def inputs(patch):
    grid = [s // p for s, p in zip((32, 16, 8), patch)]
    return noise(2, 1, 32, 16, 8, seed=9), maps_for("unetr", patch, grid)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 8, 4), (6, 6, 4)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_parameter_learns_and_scripts(patch, levels):
    net, (image, maps) = noisy("unetr", patch, image_levels=levels).train(), inputs(patch)
    assert len(net.image_downs) == levels - 1
    out = net(image, maps)
    assert out.shape == (2, 3, 32, 16, 8)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    torch.testing.assert_close(torch.jit.script(net)(image, maps), out, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_level_adds_its_features_to_the_tap():
    patch = (8, 8, 4)
    net, (image, maps) = noisy("unetr", patch, image_levels=3), inputs(patch)
    full = net.image_branch(image)
    half = net.image_downs[0](full)
    quarter = net.image_downs[1](half)
    assert half.shape[2:] == (16, 8, 8)  # the thin axis is halved at the coarser stages only
    assert quarter.shape[2:] == (8, 4, 4)
    x = net.up_blocks[0](maps[2], net.tap_branches[0](maps[1]) + quarter)
    x = net.up_blocks[1](x, net.tap_branches[1](maps[0]) + half)
    expected = net.head(net.up_blocks[2](x, full))
    torch.testing.assert_close(net(image, maps), expected)


@pytest.mark.parametrize("levels", [0, 4])
def test_levels_are_as_many_as_stages_at_most(levels):
    with pytest.raises(ValueError, match=rf"image_levels={levels}.*\(8, 8, 8\).*1 to 3"):
        fresh("unetr", (8, 8, 8), image_levels=levels)
