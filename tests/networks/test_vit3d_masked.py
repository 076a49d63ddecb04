"""Tokens of some patches as if the others were not there: exact, cut off from hidden voxels, and clear errors."""

import pytest
import torch

from monai_vit3d.layers import ConvStem3D
from tests.helpers import randn
from tests.networks.nets import TINY, noisy

PREFIXES = [
    {"class_token": False, "global_pool": "avg", "fc_norm": False},
    {},
    {"reg_tokens": 2},
    {"reg_tokens": 1, "no_embed_class": True, "pre_norm": True},
]


def volume(seed=7):
    return randn(2, 1, *TINY["img_size"], seed=seed)


def some(batch=2, count=9, patches=24):
    order = randn(batch, patches, seed=3).argsort(1)
    assert not torch.equal(order[0, :count].sort().values, order[1, :count].sort().values)
    return order[:, :count]


def voxels_of(patches, grid=(2, 3, 4), patch=TINY["patch_size"]):
    """Bool ``(B, 1, H, W, D)``: where the patches of each sample lie, by loops."""
    where = torch.zeros(len(patches), 1, *(n * p for n, p in zip(grid, patch)), dtype=torch.bool)
    for sample, numbers in enumerate(patches.tolist()):
        for number in numbers:
            h, rest = divmod(number, grid[1] * grid[2])
            w, d = divmod(rest, grid[2])
            corner = h * patch[0], w * patch[1], d * patch[2]
            where[sample, 0][tuple(slice(c, c + p) for c, p in zip(corner, patch))] = True
    return where


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "none"])
def test_all_patches_are_the_whole_network(pos_embed, prefix):
    net = noisy(pos_embed=pos_embed, **prefix)
    everything = torch.arange(24).expand(2, -1)
    assert torch.equal(net.forward_masked(volume(), everything), net.forward_features(volume()))


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "none"])
def test_kept_patches_by_hand(pos_embed, prefix):
    net, keep = noisy(pos_embed=pos_embed, **prefix), some()
    tokens, p = net._tokens(volume())[0], net.num_prefix_tokens
    rows = [torch.cat([row[:p], torch.stack([row[p + n] for n in chosen])]) for row, chosen in zip(tokens, keep)]
    by_hand = net.norm(net.blocks(torch.stack(rows)))
    out = net.forward_masked(volume(), keep)
    assert out.shape == (2, p + 9, 24)
    torch.testing.assert_close(out, by_hand, rtol=0, atol=1e-12)
    # the blocks mix what they see: patches left out do change the others
    full = net.forward_features(volume())[:, p:].gather(1, keep[..., None].expand(-1, -1, 24))
    assert (out[:, p:] - full).abs().max() > 1e-3


@torch.no_grad()
def test_order_follows_keep():
    net, keep = noisy(), some()
    turned = net.forward_masked(volume(), keep.flip(1))
    torch.testing.assert_close(turned[:, 1:].flip(1), net.forward_masked(volume(), keep)[:, 1:], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("prefix", [*PREFIXES, {"embed_layer": ConvStem3D}])
@pytest.mark.parametrize("fill", [100.0, float("nan"), float("inf")])
def test_hidden_voxels_do_not_matter(prefix, fill):
    net, keep = noisy(**prefix), some()
    seen = voxels_of(keep)
    changed = torch.where(seen, volume(), fill * volume(seed=8))
    assert torch.equal(net.forward_masked(changed, keep), net.forward_masked(volume(), keep))
    touched = torch.where(seen, volume(seed=9), volume())
    assert (net.forward_masked(touched, keep) - net.forward_masked(volume(), keep)).abs().amax((1, 2)).min() > 1e-3


@torch.no_grad()
def test_a_conv_stem_sees_zeros_where_patches_are_hidden():
    net, keep = noisy(embed_layer=ConvStem3D), some()
    shown = net._tokens(volume() * voxels_of(keep))[0][:, 1:].gather(1, keep[..., None].expand(-1, -1, 24))
    by_hand = net.norm(net.blocks(torch.cat([net._tokens(volume())[0][:, :1], shown], 1)))
    torch.testing.assert_close(net.forward_masked(volume(), keep), by_hand, rtol=0, atol=1e-12)


@torch.no_grad()
def test_padded_volumes():
    net, x = noisy(dynamic_img_pad=True), volume()[..., :-1]
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(net.forward_masked(x, everything), net.forward_features(x), rtol=0, atol=1e-12)


def test_gradient_reaches_seen_voxels_and_their_positions_only():
    net, keep, x = noisy(), some(), volume().requires_grad_()
    net.forward_masked(x, keep).square().sum().backward()
    assert torch.equal(x.grad != 0, voxels_of(keep))
    used = net.pos_embed.grad[0, 1:].abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == sorted(set(keep.flatten().tolist()))


@torch.no_grad()
def test_other_sizes_and_gradient_checkpoints():
    net, keep = noisy(dynamic_img_size=True), some(patches=12)
    x = volume()[..., :4]
    out = net.forward_masked(x, torch.arange(12).expand(2, -1))
    torch.testing.assert_close(out, net.forward_features(x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"12 patches, 0 to 11"):
        net.forward_masked(x, torch.full((2, 1), 12))
    with torch.enable_grad():
        plain = net.forward_masked(x, keep)
        net.set_grad_checkpointing()
        assert torch.equal(net.forward_masked(x, keep), plain)


@pytest.mark.parametrize(
    ("keep", "match"),
    [
        (torch.zeros(2, 3), r"\(2, 3\), torch.float32; expected torch.long patch numbers of shape \(2, N\)"),
        (torch.zeros(2, 24, dtype=torch.bool), "torch.bool"),
        (torch.zeros(2, 3, dtype=torch.int32), "torch.int32"),
        (torch.zeros(3, dtype=torch.long), r"ids_keep of shape \(3,\)"),
        (torch.zeros(3, 3, dtype=torch.long), r"shape \(2, N\)"),
        (torch.zeros(2, 0, dtype=torch.long), "N of 1 or more"),
        (torch.tensor([[0, 1], [2, 24]]), "numbers from 0 to 24; the input has 24 patches, 0 to 23"),
        (torch.tensor([[0, 1], [2, -1]]), "numbers from -1 to 2"),
    ],
)
def test_errors(keep, match):
    with pytest.raises(ValueError, match=match):
        noisy().forward_masked(volume(), keep)


@torch.no_grad()
def test_patch_dropout_is_refused_where_it_would_act():
    net = noisy(patch_drop_rate=0.25)
    assert torch.equal(net.forward_masked(volume(), some()), noisy().forward_masked(volume(), some()))
    with pytest.raises(ValueError, match="patch_drop_rate > 0"):
        net.train().forward_masked(volume(), some())
