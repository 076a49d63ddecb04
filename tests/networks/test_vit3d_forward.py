"""What the backbone does with a batch: shapes, pools, errors, intermediates, other sizes, positions."""

import copy
import math
import re
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from timm.models.vision_transformer import VisionTransformer as TimmViT

from monai_vit3d.layers import resample_pos_embed, sincos_pos_embed
from monai_vit3d.networks import VisionTransformer3D
from tests.helpers import randn
from tests.networks.nets import TINY, noisy

close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)
few = settings(derandomize=True)
POSITIONS = ("learned", "sincos", "none")


def volume(*size, chans=1):
    return randn(2, chans, *(size or TINY["img_size"]), seed=7)


def with_weights(weights, **options):
    net = noisy(**options)
    net.load_state_dict(weights.state_dict())
    return net


def pos_patches(net):
    """Positions of patch tokens ``(1, N, E)`` of a network with a class token."""
    return net.pos_embed[:, 1:] if net.pos_embed_type == "learned" else net.pos_embed


# ---- shapes and pools


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("reg_tokens", [0, 2])
@pytest.mark.parametrize("pool", ["cls_token", "token", "avg", "max", "avgmax", "map", ""])
def test_shapes(pool, reg_tokens, num_classes):
    net = noisy(global_pool=pool, reg_tokens=reg_tokens, num_classes=num_classes, in_chans=2)
    x, tokens, width = volume(chans=2), 25 + reg_tokens, num_classes or 24
    features = net.forward_features(x)
    lead = (2, tokens) if pool == "" else (2,)
    assert features.shape == (2, tokens, 24)
    assert net.pool(features).shape == net.forward_head(features, pre_logits=True).shape == (*lead, 24)
    assert net(x).shape == (*lead, width)
    close(net(x), net.forward_head(features))
    if num_classes:
        close(net(x), F.linear(net.forward_head(features, pre_logits=True), net.head.weight, net.head.bias))


@pytest.mark.parametrize("include_prefix", [False, True])
def test_pool(include_prefix):
    net, x = noisy(reg_tokens=2, pool_include_prefix=include_prefix), randn(2, 27, 24)
    part = x if include_prefix else x[:, 3:]
    mean, top = part.sum(1) / part.shape[1], part.sort(1).values[:, -1]
    wanted = {"cls_token": x[:, 0], "token": x[:, 0], "avg": mean, "max": top, "avgmax": (mean + top) / 2, "": x}
    for mode, want in wanted.items():
        close(net.pool(x, mode), want)
    close(net.pool(x), x[:, 0])
    with pytest.raises(ValueError, match="global_pool='map'"):
        net.pool(x, "map")


def test_map_pool_sees_the_prefix_only_if_asked():
    tokens = randn(2, 27, 24)
    changed = tokens.clone()
    changed[:, :3] += 1
    for include_prefix in (False, True):
        net = noisy(global_pool="map", reg_tokens=2, pool_include_prefix=include_prefix)
        moved = (net.pool(changed) - net.pool(tokens)).abs().max()
        assert (moved > 1e-3) == include_prefix


@torch.no_grad()
def test_token_is_a_synonym():
    net = noisy(global_pool="token", num_classes=5)
    assert net.global_pool == "cls_token"
    close(net(volume()), noisy(global_pool="cls_token", num_classes=5)(volume()))


@torch.no_grad()
def test_meta_tensor_in_plain_tensor_out():
    net = noisy(num_classes=5)
    x = MetaTensor(volume(), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    outs = net(x), net.forward_features(x), *net.forward_intermediates(x, output_fmt="NCHWD")[1]
    assert {type(out) for out in outs} == {torch.Tensor}
    close(outs[0], net(volume()))
    assert isinstance(x, MetaTensor)


# ---- errors


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((1, 8, 12, 8), {}, r"\[1, 8, 12, 8\].*\(B, C, H, W, D\)"),
        ((1, 1, 1, 8, 12, 8), {}, r"\[1, 1, 1, 8, 12, 8\].*\(B, C, H, W, D\)"),
        ((1, 3, 8, 12, 8), {}, r"\[1, 3, 8, 12, 8\].* 3 channels.*in_chans=1"),
        ((1, 1, 8, 12, 8), {"in_chans": 2}, "1 channels.*in_chans=2"),
        ((1, 1, 12, 8, 8), {}, r"\[12, 8, 8\].*img_size=\[8, 12, 8\].*dynamic_img_size=True"),
        ((1, 1, 12, 8, 8), {"pos_embed": "none"}, r"\[12, 8, 8\].*img_size=\[8, 12, 8\]"),
        ((1, 1, 12, 8, 8), {"pos_embed": "sincos"}, r"\[12, 8, 8\].*img_size=\[8, 12, 8\]"),
        ((1, 1, 9, 8, 7), {"dynamic_img_size": True}, r"\[9, 8, 7\].*\[4, 4, 2\].*\[12, 8, 8\].*dynamic_img_pad=True"),
        ((1, 1, 8, 13, 8), {"dynamic_img_pad": True}, r"\[8, 13, 8\].*larger.*\[8, 12, 8\].*dynamic_img_size=True"),
    ],
)
def test_input_is_refused(shape, options, match):
    net = noisy(**options)
    for call in (net, net.forward_features, net.forward_intermediates):
        with pytest.raises(ValueError, match=match):
            call(randn(*shape))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"img_size": (9, 12, 7)}, r"\(9, 12, 7\).*\(4, 4, 2\).*\(12, 12, 8\)"),
        ({"img_size": (8, 12)}, r"img_size=\(8, 12\).*\(H, W, D\)"),
        ({"img_size": 0}, "img_size=0.*positive"),
        ({"img_size": 8.0}, r"img_size=8.0.*integer"),
        ({"patch_size": (4, 4, 2.5)}, r"patch_size=\(4, 4, 2.5\).*integer"),
        ({"global_pool": "mean"}, "'mean'.*'cls_token', 'avg', 'max', 'avgmax', 'map', ''"),
        ({"class_token": False}, "class_token=False.*'avg'"),
        ({"class_token": False, "global_pool": "token"}, "'token' needs a class token"),
        ({"pos_embed": "rope"}, "'rope'.*'learned', 'sincos', 'none'"),
        ({"pos_embed": "sincos", "embed_dim": 4}, "embed_dim=4.*6 channels"),
        ({"embed_dim": 25}, "embed_dim=25.*num_heads=2.*divisible"),
        ({"depth": 0}, "depth=0"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"reg_tokens": -1}, "reg_tokens=-1"),
        ({"weight_init": "bogus"}, "'bogus'.*'jax'"),
        ({"norm_layer": "bogus"}, "'bogus'.*'layernorm'"),
        ({"act_layer": "bogus"}, "'bogus'.*'gelu'"),
        ({"mlp_layer": "bogus"}, "'bogus'.*swiglu"),
        ({"attn_layer": "bogus"}, "'bogus'"),
    ],
)
def test_option_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        VisionTransformer3D(**{**TINY, **options})


@pytest.mark.parametrize("mode", ["cls_token", "token", "mean", "prr"])
def test_pool_is_refused(mode):
    net = noisy(class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match=re.escape(repr(mode))):
        net.pool(randn(2, 24, 24), mode)


# ---- intermediates


@torch.no_grad()
def block_outputs(net, x):
    """The output of every block, from the network's own parts."""
    y = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed(x)], 1) + net.pos_embed
    outs = []
    for block in net.blocks:
        y = block(y)
        outs.append(y)
    return outs


def as_grid(tokens):
    """Class token off, and the grid filled in a loop: H slowest, D fastest."""
    grid = tokens.new_full((2, 24, 2, 3, 4), float("nan"))
    for n, (h, w, d) in enumerate((h, w, d) for h in range(2) for w in range(3) for d in range(4)):
        grid[:, :, h, w, d] = tokens[:, 1 + n]
    return grid


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("indices", "blocks"),
    [(None, [0, 1, 2]), (1, [1]), (0, [0]), (-3, [0]), ((-1,), [2]), ([2, 0], [0, 2]), ((-1, 0, 1), [0, 1, 2])],
)
def test_forward_intermediates(indices, blocks, norm):
    net, x = noisy(), volume()
    outs = block_outputs(net, x)
    final, want = net.norm(outs[-1]), [net.norm(outs[i]) if norm else outs[i] for i in blocks]
    close(net.forward_intermediates(x, indices, norm), (final, want))
    for fmt in ("NCHWD", "NCHW"):
        close(net.forward_intermediates(x, indices, norm, fmt), (final, [as_grid(y) for y in want]))
    close(net.forward_intermediates(x, indices, norm, intermediates_only=True), want)
    pairs = [(y[:, 1:], y[:, :1]) for y in want]
    close(net.forward_intermediates(x, indices, norm, return_prefix_tokens=True), (final, pairs))
    pairs = [(as_grid(y), y[:, :1]) for y in want]
    close(net.forward_intermediates(x, indices, norm, "NCHWD", True, return_prefix_tokens=True), pairs)


@torch.no_grad()
def test_forward_intermediates_defaults():
    net, x = noisy(), volume()
    outs = block_outputs(net, x)
    close(net.forward_intermediates(x), (net.norm(outs[-1]), [outs[-1]]))
    close(net.forward_features(x), net.norm(outs[-1]))


@torch.no_grad()
def test_stop_early():
    net, x = noisy(), volume()
    outs, runs = block_outputs(net, x), []
    net.blocks[2].register_forward_hook(lambda *_: runs.append(1))
    close(net.forward_intermediates(x, [0, 1], stop_early=True), (net.norm(outs[1]), outs[:2]))
    assert not runs
    close(net.forward_intermediates(x, [0, 1]), (net.norm(outs[2]), outs[:2]))


@torch.no_grad()
@pytest.mark.parametrize("reg_tokens", [0, 2])
@pytest.mark.parametrize("fmt", ["NLC", "NCHWD"])
def test_output_dict(fmt, reg_tokens):
    net, x = noisy(reg_tokens=reg_tokens), volume()
    final, taken = net.forward_intermediates(x, None, output_fmt=fmt)
    close(
        net.forward_intermediates(x, None, output_fmt=fmt, output_dict=True),
        {"image_features": final, "image_intermediates": taken},
    )
    pairs = net.forward_intermediates(x, None, output_fmt=fmt, intermediates_only=True, return_prefix_tokens=True)
    got = net.forward_intermediates(
        x, None, output_fmt=fmt, intermediates_only=True, return_prefix_tokens=True, output_dict=True
    )
    close(got, {"image_intermediates": [y for y, _ in pairs], "image_intermediates_prefix": [p for _, p in pairs]})
    assert all(p.shape == (2, 1 + reg_tokens, 24) for p in got["image_intermediates_prefix"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"indices": 3}, "index 3 .* 3 blocks, -3 to 2"),
        ({"indices": [0, -4]}, "index -4"),
        ({"output_fmt": "NHWC"}, "'NHWC'; expected 'NLC' or 'NCHWD'"),
    ],
)
def test_forward_intermediates_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        noisy().forward_intermediates(volume(), **options)


@torch.no_grad()
@pytest.mark.parametrize("indices", [[2, 0], [-1, 0, 2], (0, 0, -1)])
def test_intermediates_come_once_and_in_block_order_as_timms(indices):
    net = noisy()
    theirs = TimmViT(12, 4, embed_dim=24, depth=3, num_heads=2).eval()
    want = theirs.forward_intermediates(torch.zeros(1, 3, 12, 12), list(indices), intermediates_only=True)
    got = net.forward_intermediates(volume(), indices, intermediates_only=True)
    assert len(got) == len(want) == 2
    close(got, net.forward_intermediates(volume(), [0, 2], intermediates_only=True))


@torch.no_grad()
@pytest.mark.parametrize("rope", [None, "patch"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_causal_is_the_mask_of_the_tokens_before(rope, checkpointing):
    net, x = noisy(rope=rope, num_classes=3), volume()
    net.set_grad_checkpointing(checkpointing)
    before = torch.ones(25, 25, dtype=torch.bool).tril()
    close(net(x, is_causal=True), net(x, attn_mask=before))
    close(net.forward_features(x, is_causal=True), net.forward_features(x, before))
    close(net.forward_intermediates(x, [1], is_causal=True), net.forward_intermediates(x, [1], attn_mask=before))
    assert (net(x, attn_mask=before) - net(x)).abs().max() > 1e-3


@pytest.mark.parametrize("rope", [None, "patch"])
def test_masked_gradients_with_and_without_checkpointing(rope):
    mask, gradients = torch.ones(25, 25, dtype=torch.bool).tril(), []
    for checkpointing in (False, True):
        net = noisy(rope=rope, num_classes=3)
        net.set_grad_checkpointing(checkpointing)
        net(volume(), attn_mask=mask).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    close(*gradients)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masked_key_is_as_if_it_were_not_there(kind):
    net, x, gone = noisy(), volume(), 7
    seen = torch.ones(25, 25, dtype=torch.bool)
    seen[:, gone] = False
    mask = seen if kind == "bool" else torch.zeros(25, 25, dtype=torch.float64).masked_fill(~seen, -math.inf)
    y = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed(x)], 1) + net.pos_embed
    keep = [i for i in range(25) if i != gone]
    want = net.norm(net.blocks(y[:, keep]))
    close(net.forward_features(x, attn_mask=mask)[:, keep], want)
    final, taken = net.forward_intermediates(x, norm=True, attn_mask=mask)
    close((final[:, keep], taken[0][:, keep]), (want, want))
    assert (want - net.forward_features(x)[:, keep]).abs().max() > 1e-3
    close(net.forward_features(x, attn_mask=mask.new_full((25, 25), kind == "bool")), net.forward_features(x))


# ---- other sizes


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12, 8), (16, 8, 8), (4, 16, 2)])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"pre_norm": True}])
def test_dynamic_size_with_learned_positions(options, size):
    net = noisy(dynamic_img_size=True, num_classes=5, **options)
    static = noisy(num_classes=5, **options)
    static.set_input_size(size)
    for _ in range(2):  # the second time from the kept positions
        close(net(volume(*size)), static(volume(*size)))
    maps = net.forward_intermediates(volume(*size), output_fmt="NCHWD", intermediates_only=True)
    close(maps, static.forward_intermediates(volume(*size), output_fmt="NCHWD", intermediates_only=True))
    assert maps[0].shape[2:] == (size[0] // 4, size[1] // 4, size[2] // 2)


@torch.no_grad()
@pytest.mark.parametrize("pos_embed", ["sincos", "none"])
@pytest.mark.parametrize("size", [(16, 8, 8), (4, 16, 2)])
def test_dynamic_size_without_learned_positions(size, pos_embed):
    net = noisy(dynamic_img_size=True, pos_embed=pos_embed, reg_tokens=2)
    close(net(volume(*size)), with_weights(net, img_size=size, pos_embed=pos_embed, reg_tokens=2)(volume(*size)))


sizes = st.tuples(st.integers(1, 13), st.integers(1, 13), st.integers(1, 9))


@pytest.mark.slow
@torch.no_grad()
@few
@given(size=sizes, pos_embed=st.sampled_from(POSITIONS))
def test_padding_of_any_size(size, pos_embed):
    options = {"pos_embed": pos_embed, "dynamic_img_size": True, "global_pool": "avg", "depth": 1}
    net, plain = noisy(dynamic_img_pad=True, **options), noisy(**options)
    padded = torch.zeros(2, 1, *(-(-s // p) * p for s, p in zip(size, (4, 4, 2))), dtype=torch.float64)
    padded[:, :, : size[0], : size[1], : size[2]] = volume(*size)
    close(net(volume(*size)), plain(padded))


@pytest.mark.slow
@torch.no_grad()
@few
@given(
    size=st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(1, 8)),
    pos_embed=st.sampled_from(POSITIONS),
    prefix=st.sampled_from([{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"class_token": False}]),
    pool=st.sampled_from(["avg", "max", "avgmax", "map"]),
)
def test_padding_up_to_img_size_masks_empty_tokens(size, pos_embed, prefix, pool):
    options = {"pos_embed": pos_embed, "global_pool": pool, "fc_norm": False, "depth": 2, **prefix}
    net, full = noisy(dynamic_img_pad=True, **options), noisy(**options)
    padded = torch.zeros(2, 1, 8, 12, 8, dtype=torch.float64)
    padded[:, :, : size[0], : size[1], : size[2]] = volume(*size)
    grid = tuple(math.ceil(s / p) for s, p in zip(size, (4, 4, 2)))
    kept = torch.zeros(2, 3, 4, dtype=torch.bool)
    kept[: grid[0], : grid[1], : grid[2]] = True
    p = net.num_prefix_tokens
    seen = torch.cat([torch.ones(p, dtype=torch.bool), kept.flatten()])

    want = full.forward_features(padded, attn_mask=seen.expand(p + 24, -1))[:, seen]
    close(net.forward_features(volume(*size)), want)
    close(net(volume(*size)), full.pool(want))
    maps = net.forward_intermediates(volume(*size), norm=True, output_fmt="NCHWD", intermediates_only=True)
    close(maps, [want[:, p:].mT.reshape(2, 24, *grid)])


# ---- positions that are kept


def test_kept_positions_follow_the_weights():
    net, x = noisy(dynamic_img_size=True), volume(4, 16, 6)

    def fresh():
        return with_weights(net, dynamic_img_size=True)(x)

    with torch.no_grad():
        outs = [net(x)]
        net.pos_embed.add_(randn(*net.pos_embed.shape, seed=1))
        outs.append(net(x))
        close(outs[-1], fresh())
        other = noisy(dynamic_img_size=True)
        other.pos_embed.mul_(-2)
        net.load_state_dict(other.state_dict())
        outs.append(net(x))
        close(outs[-1], fresh())
        net.pos_embed = torch.nn.Parameter(randn(*net.pos_embed.shape, seed=2))
        outs.append(net(x))
        close(outs[-1], fresh())
        close(net(volume(8, 8, 6)), with_weights(net, dynamic_img_size=True)(volume(8, 8, 6)))
        close(net(x), outs[-1])
    for mode in (True, False):
        close(net.train(mode)(x), outs[-1])
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(outs))


@torch.no_grad()
def test_kept_positions_follow_updates_through_data():
    # as DINO's and many other EMA loops write their teacher: p.data.mul_(m).add_(...)
    net, x = noisy(dynamic_img_size=True), volume(4, 16, 6)
    net(x)
    net.pos_embed.data.mul_(0.5).add_(randn(*net.pos_embed.shape, seed=1))
    close(net(x), with_weights(net, dynamic_img_size=True)(x))


@torch.no_grad()
@pytest.mark.parametrize("how", ["assign", "set_input_size"])
def test_kept_positions_follow_a_replaced_parameter(how):
    # a new parameter may get the old one's memory
    net, x, stale = noisy(dynamic_img_size=True), volume(4, 16, 6), 0
    for i in range(40):
        if how == "assign":
            net.load_state_dict({"pos_embed": randn(1, 25, 24, seed=i)}, strict=False, assign=True)
        else:
            net.set_input_size((8, 8, 8))
            net.set_input_size((8, 12, 8))
        if i % 2:
            stale += not torch.allclose(net(x), copy.deepcopy(net)(x))
    assert stale == 0


@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
@pytest.mark.parametrize("pad", [False, True])
def test_inference_mode_then_training(pad, pos_embed):
    options = {"dynamic_img_size": not pad, "dynamic_img_pad": pad, "pos_embed": pos_embed}
    x, grads = volume(4, 12, 6), []
    for infer_first in (False, True):
        net = noisy(**options)
        if infer_first:
            with torch.inference_mode():
                before = net(x)
        out = net(x)
        out.square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    close(before, out.detach())
    close(*grads)
    assert ("pos_embed" in grads[0]) == (pos_embed == "learned")


@pytest.mark.parametrize("how", ["built", "cast"])
def test_network_made_in_inference_mode(how):
    options, x = {"dynamic_img_size": True, "pos_embed": "sincos"}, volume(4, 16, 6)
    net = noisy(**options).float()
    want = copy.deepcopy(net).double()(x).detach()
    with torch.inference_mode():
        if how == "built":
            net = with_weights(net, **options)
        close(net.double()(x), want)


def test_resized_positions_are_trained():
    # while gradients are on, resampled learned positions are part of the graph
    net, x = noisy(dynamic_img_size=True), volume(4, 16, 6)
    with torch.no_grad():
        net(x)
    net(x).square().sum().backward()
    assert (net.pos_embed.grad.abs().amax(2) > 0).float().mean() > 0.5


# ---- the tables


@few
@given(grid=st.tuples(*[st.integers(1, 6)] * 3), dim=st.integers(6, 64))
def test_sincos_table(grid, dim):
    table = sincos_pos_embed(grid, dim)
    assert (table.shape, table.dtype) == ((1, math.prod(grid), dim), torch.float32)
    table = table.reshape(*grid, dim).double()
    pairs = [dim // 2 // 3 + (axis < dim // 2 % 3) for axis in range(3)]
    want = torch.zeros(*grid, dim, dtype=torch.float64)
    start = 0
    for axis, n in enumerate(pairs):
        for k in range(n):
            for i in range(grid[axis]):
                angle = i / 10000 ** (k / n)
                want.select(axis, i)[..., start + k] = math.sin(angle)
                want.select(axis, i)[..., start + n + k] = math.cos(angle)
        start += 2 * n
    torch.testing.assert_close(table, want, rtol=0, atol=1e-7)

    # a channel varies along one axis at most, and all positions differ
    moves = torch.stack([(table - table.narrow(a, 0, 1)).abs().amax((0, 1, 2)) > 0 for a in range(3)])
    assert (moves.sum(0) <= 1).all()
    gaps = torch.cdist(table.reshape(-1, dim), table.reshape(-1, dim)) + torch.eye(math.prod(grid))
    assert gaps.min() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
def test_positions_lie_as_the_tokens_do(pos_embed):
    # an image of zeros shows the positions alone
    net = noisy(pos_embed=pos_embed)
    net.patch_embed.proj.bias.zero_()
    net.blocks = torch.nn.Sequential(torch.nn.Identity())
    maps = net.forward_intermediates(0 * volume(), 0, output_fmt="NCHWD", intermediates_only=True)[0]
    want = torch.cat([0 * net.cls_token, pos_patches(net)], 1).expand(2, -1, -1)
    close(maps, as_grid(want))


grids = st.tuples(*[st.integers(1, 6)] * 3)


@few
@given(old=grids, new=grids, prefix=st.integers(0, 3))
def test_resampled_positions(old, new, prefix):
    n = math.prod(old)
    pos = randn(1, prefix + n, 5)
    close(resample_pos_embed(pos, old, old, prefix), pos)
    flat = pos[:, :1].expand(1, prefix + n, 5)
    close(resample_pos_embed(flat, old, new, prefix), pos[:, :1].expand(1, prefix + math.prod(new), 5))
    close(resample_pos_embed(pos, old, new, prefix)[:, :prefix], pos[:, :prefix])

    # a channel that varies along one axis is resampled along that axis only
    for axis in range(3):
        line = randn(old[axis], seed=axis)
        shape = [-1 if a == axis else 1 for a in range(3)]
        want = F.interpolate(line[None, None], new[axis], mode="linear", align_corners=False)[0, 0]
        got = resample_pos_embed(line.reshape(shape).expand(old).reshape(1, n, 1), old, new, 0)
        close(got.reshape(new), want.reshape(shape).expand(new))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_resampling_in_half_precision_rounds_once(dtype):
    pos = randn(1, 24, 8).to(dtype)
    want = resample_pos_embed(pos.float(), (2, 3, 4), (5, 4, 7), 0).to(dtype)
    torch.testing.assert_close(resample_pos_embed(pos, (2, 3, 4), (5, 4, 7), 0), want, rtol=0, atol=0)
