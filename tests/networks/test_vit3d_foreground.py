"""Tokens of foreground alone: number for number those of attention with the keys of background masked."""

from functools import partial

import numpy as np
import pytest
import torch

from monai_vit3d.layers import ConvStem3D, RotaryPositions3D, set_spacing
from monai_vit3d.networks import VisionTransformer3D, build_network, model_args
from tests.helpers import randn
from tests.networks.nets import TINY, noisy

GRID, PATCH, COUNT = (2, 3, 4), TINY["patch_size"], 24
MM = partial(RotaryPositions3D, unit="mm", unit_mm=4.0, spacing_mm=(0.7, 0.7, 5.0))
POSITIONS = {
    "learned": {},
    "sincos": {"pos_embed": "sincos"},
    "none": {"pos_embed": "none"},
    "patch": {"rope": "patch", "pos_embed": "none"},
    "mm": {"rope": MM},
    "box": {"rope": "box"},
}
PREFIXES = {
    "no prefix": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "class token": {},
    "class token, registers": {"reg_tokens": 2, "no_embed_class": True},
    "registers": {"class_token": False, "reg_tokens": 1, "global_pool": "avg", "fc_norm": False},
}


def places(number):
    """The voxels of a patch, D fastest."""
    h, w, d = np.unravel_index(number, GRID)
    return tuple(slice(i * p, (i + 1) * p) for i, p in zip((h, w, d), PATCH))


def volume(*foreground, channels=1, air=-0.7):
    """Volumes that are constant but for some patches, by loops; and which these are, ``(B, 24)``."""
    x = torch.full((len(foreground), channels, *TINY["img_size"]), air, dtype=torch.float64)
    valid = torch.zeros(len(foreground), COUNT, dtype=torch.bool)
    noise = randn(*x.shape, seed=7)
    for sample, numbers in enumerate(foreground):
        for number in numbers:
            at = (sample, slice(None), *places(number))
            x[at] = noise[at]
            valid[sample, number] = True
    return x, valid


UNEQUAL = volume([0, 3, 4, 9, 10, 23], [5], range(11, 20))
EQUAL = volume([0, 3, 4, 9], [20, 21, 5, 7])


def masked(net, x, valid, **options):
    """What the whole network gives where nobody may attend to background, with zeros there."""
    p = net.num_prefix_tokens
    keys = torch.cat([torch.ones(len(x), p, dtype=torch.bool), valid], 1)
    net.set_tokens("all")
    final, taps = net.forward_intermediates(x, None, attn_mask=keys[:, None, None], **options)
    net.set_tokens("foreground")
    return [torch.where(keys[..., None], tokens, 0) for tokens in (final, *taps)]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("inputs", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_as_attention_without_the_keys_of_background(positions, prefix, inputs):
    net = noisy(**{**POSITIONS[positions], **PREFIXES[prefix]}, tokens="foreground")
    x, valid = inputs
    assert torch.equal(net.foreground_patches(x), valid)
    for norm in (False, True):
        final, *taps = masked(net, x, valid, norm=norm)
        got, maps = net.forward_intermediates(x, None, norm=norm)
        close([got, *maps], [final, *taps])
    close(net.forward_features(x), final)
    # blocks mix what they see: what is left out does change the others
    net.set_tokens("all")
    assert (net.forward_features(x) - final).abs()[:, net.num_prefix_tokens :][valid].amax(1).min() > 1e-3


@torch.no_grad()
def test_blocks_run_on_the_tokens_that_are_kept():
    net, lengths = noisy(tokens="foreground", reg_tokens=1), []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape))
    net(UNEQUAL[0])
    assert lengths == [(3, 2 + 9, 24)] * 3


@torch.no_grad()
def test_grids_are_zero_at_background():
    net = noisy(tokens="foreground")
    x, valid = UNEQUAL
    for grid in (*net.forward_intermediates(x, [0, 2], output_fmt="NCHWD", intermediates_only=True),
                 *net.token_maps(x, [1])[1], net.token_maps(x, [1])[0]):  # fmt: skip
        assert grid.shape == (3, 24, *GRID)
        assert torch.equal((grid != 0).all(1).flatten(1), valid)
        assert torch.equal((grid == 0).all(1).flatten(1), ~valid)
    tokens = net.token_levels(x, [0, 2])
    close(tokens, net.forward_intermediates(x, [0, 2], norm=True, intermediates_only=True))


@torch.no_grad()
@pytest.mark.parametrize("inputs", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("include_prefix", [False, True])
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "map", "cls_token"])
def test_pooling_is_of_kept_tokens(pool, include_prefix, inputs):
    net = noisy(global_pool=pool, pool_include_prefix=include_prefix, reg_tokens=1, num_classes=3, tokens="foreground")
    x, valid = inputs
    features = net.forward_features(x)
    pooled = {
        "avg": lambda prefix, seen: seen.mean(1),
        "max": lambda prefix, seen: seen.amax(1),
        "avgmax": lambda prefix, seen: (seen.mean(1) + seen.amax(1)) / 2,
        "map": lambda prefix, seen: net.attn_pool(seen),
        "cls_token": lambda prefix, seen: prefix[:, 0],
    }
    for row, keep, logits in zip(features, valid, net(x)):
        prefix, patches = row[None, :2], row[None, 2:][:, keep]
        want = pooled[pool](prefix, torch.cat([prefix, patches], 1) if include_prefix else patches)
        close(logits, net.head(net.fc_norm(want))[0])
    if pool != "cls_token":
        with pytest.raises(ValueError, match=r"patch_valid=network\.foreground_patches"):
            net.forward_head(features)
    close(net.forward_head(features, patch_valid=valid), net(x))


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
def test_each_volume_is_as_alone(prefix):
    net = noisy(**PREFIXES[prefix], tokens="foreground")
    x = torch.cat([UNEQUAL[0], volume([])[0]])
    close(net.forward_features(x), torch.cat([net.forward_features(one[None]) for one in x]))
    close(net(x), torch.cat([net(one[None]) for one in x]))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "map"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_no_foreground_at_all(prefix, pool):
    """Patches are zeros, so is what is pooled of them; prefix tokens attend to themselves."""
    net = noisy(class_token=False, reg_tokens=prefix, global_pool=pool, fc_norm=False, tokens="foreground")
    x = volume([], [])[0]
    features = net.forward_features(x)
    assert torch.equal(features[:, prefix:], torch.zeros(2, COUNT, 24, dtype=torch.float64))
    assert torch.equal(net(x), torch.zeros(2, 24, dtype=torch.float64))
    if prefix:
        close(features[:, :prefix], net.norm(net.blocks(net._tokens(x)[0][:, :prefix])))
    mixed = torch.cat([x, UNEQUAL[0]])
    assert torch.equal(net.forward_features(mixed)[:2, prefix:], features[:, prefix:])
    assert net(mixed).isfinite().all()


def test_what_is_background():
    x, valid = volume([1, 6], channels=2)
    net = noisy(in_chans=2, tokens="foreground")
    assert torch.equal(net.foreground_patches(x), valid)
    one = x.clone()
    one[0, 1, 0, 0, 0] = 5.0  # a voxel of one channel
    assert net.foreground_patches(one)[0].nonzero().flatten().tolist() == [0, 1, 6]
    one[0, 0, 7, 11, 7] = float("nan")
    assert net.foreground_patches(one)[0].nonzero().flatten().tolist() == [0, 1, 6, 23]
    net.set_tokens(4.5)
    assert net.foreground_patches(one)[0].nonzero().flatten().tolist() == [0, 23]
    net.set_tokens(5)
    assert net.foreground_patches(one)[0].nonzero().flatten().tolist() == [23]
    net.set_tokens("all")
    assert net.foreground_patches(one) is None


def test_the_number_against_numpy():
    x = randn(3, 2, *TINY["img_size"], seed=3)
    blocks = x.numpy().reshape(3, 2, 2, 4, 3, 4, 4, 2).max(axis=(1, 3, 5, 7)).reshape(3, COUNT)
    limit = float(np.median(blocks))
    net = noisy(in_chans=2, tokens=limit)
    assert net.foreground_patches(x).numpy().tolist() == (blocks > limit).tolist()


@torch.no_grad()
def test_padded_and_other_sizes():
    """A patch that lies partly outside is judged by its voxels inside."""
    net = noisy(dynamic_img_size=True, dynamic_img_pad=True, tokens="foreground")
    x = volume([0, 2, 9])[0][..., :7, :10, :7]
    valid = net.foreground_patches(x)
    assert valid[0].nonzero().flatten().tolist() == [0, 2, 9]
    close([net.forward_features(x)], masked(net, x, valid, norm=True)[:1])
    large = torch.cat([x, x], 4)
    assert net.forward_features(large).shape == (1, 1 + 2 * 3 * 7, 24)


@torch.no_grad()
def test_a_conv_stem_sees_all_voxels():
    net = noisy(embed_layer=ConvStem3D, tokens="foreground")
    x, valid = UNEQUAL
    close([net.forward_features(x)], masked(net, x, valid, norm=True)[:1])


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_the_masked_network(recompute):
    x, valid = UNEQUAL
    gradients = []
    for tokens in ("all", "foreground"):
        net = noisy(tokens=tokens, num_classes=2, rope="patch").train()
        net.set_grad_checkpointing(recompute)
        mask = torch.cat([torch.ones(3, 1, dtype=torch.bool), valid], 1)[:, None, None] if tokens == "all" else None
        net(x, mask).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert len(gradients[0]) > 30
    close(gradients[1], gradients[0])


FORMS = {
    "script": lambda net, x: torch.jit.script(net),
    "trace": lambda net, x: torch.jit.trace(net, x),
    "fx": lambda net, x: torch.fx.symbolic_trace(net),
    "export": lambda net, x: torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module(),
    "compile": lambda net, x: torch.compile(net, backend="eager", fullgraph=True),
}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        ("foreground", {"rope": MM, "reg_tokens": 1}),
        (-0.5, PREFIXES["no prefix"]),
        ("foreground", {"global_pool": "map", "dynamic_img_pad": True}),
    ],
)
@pytest.mark.parametrize(
    "form", ["trace", "fx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("script", "export", "compile"))]
)
def test_exported_forms_give_the_same(form, tokens, options):
    """Made with one volume, run on others with other foreground."""
    net = noisy(**options, num_classes=3, tokens=tokens)
    program = FORMS[form](net, EQUAL[0] if form != "trace" else volume([1], [2], [3])[0])
    close(program(UNEQUAL[0]), net(UNEQUAL[0]))
    if form != "trace":
        empty = volume([], [4])[0]
        close(program(empty), net(empty))


@torch.no_grad()
def test_an_ensemble_by_vmap():
    net, x = noisy(tokens="foreground"), UNEQUAL[0]
    stacked = {key: torch.stack([value, 0.5 * value]) for key, value in net.state_dict().items()}
    both = torch.func.vmap(lambda state, one: torch.func.functional_call(net, state, (one[None],))[0], (0, None))
    close(both(stacked, x[0])[0], net(x[:1])[0])


@torch.no_grad()
def test_each_sample_with_its_spacing():
    net, x = noisy(rope=MM, tokens="foreground"), UNEQUAL[0]
    spacings = [(0.7, 0.7, 5.0), (1.0, 1.2, 1.0), (2.0, 2.0, 2.0)]
    set_spacing(net, spacings)
    both = net.forward_features(x)
    for i, spacing in enumerate(spacings):
        set_spacing(net, spacing)
        close(net.forward_features(x[i : i + 1]), both[i : i + 1])


@pytest.mark.parametrize("tokens", ["all", "foreground", 0.25])
def test_recorded_with_the_network(tokens):
    net = VisionTransformer3D(**TINY, tokens=tokens)
    args = model_args(net)
    assert args.get("tokens", "all") == tokens
    assert ("tokens" in args) == (tokens != "all")  # files stay those of earlier releases
    assert build_network(args).tokens == tokens
    assert build_network(args, tokens="foreground").tokens == "foreground"


@pytest.mark.parametrize("tokens", ["foreground ", None, True, float("nan"), float("inf"), [0.5]])
def test_other_values(tokens):
    with pytest.raises(ValueError, match=r"expected 'all', 'foreground' .*, or a number"):
        VisionTransformer3D(**TINY, tokens=tokens)


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="patch_drop_rate > 0: use 0, or 'all'"):
        VisionTransformer3D(**TINY, tokens="foreground", patch_drop_rate=0.5)
    net = noisy(tokens="foreground")
    with pytest.raises(ValueError, match="is_causal are of all patches"):
        net(EQUAL[0], is_causal=True)
    with pytest.raises(ValueError, match=r"set_tokens\('all'\) first"):
        net.forward_features(EQUAL[0], torch.ones(25, 25, dtype=torch.bool))
    wrong = {(1, 1, 8, 12): "expected a batch", (1, 2, 8, 12, 8): "in_chans=1", (1, 1, 8, 12, 6): "set_input_size"}
    for shape, match in wrong.items():
        with pytest.raises(ValueError, match=match):
            net(torch.zeros(shape, dtype=torch.float64))
