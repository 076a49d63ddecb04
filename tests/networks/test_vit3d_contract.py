"""timm's model contract: what timm's tools and users' scripts may ask of the backbone."""

import copy
import io
import math
import pickle
from contextlib import contextmanager
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import GluMlp, SwiGLU, set_fused_attn, use_fused_attn
from timm.models import group_parameters
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import Block, DiffParallelScalingBlock, ResPostBlock, VisionTransformer
from timm.optim import param_groups_layer_decay
from timm.utils import AttentionExtract
from torch import nn

from monai_vit3d.layers import EMBED_LAYERS, PatchEmbed3D
from monai_vit3d.networks import PRESETS, TokenClassifier, TokenSegmenter, VisionTransformer3D, create_preset
from tests.helpers import randn

close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)
# three different sides, an anisotropic patch, and a (2, 3, 4) grid
TINY = {"img_size": (8, 12, 8), "patch_size": (4, 4, 2), "embed_dim": 24, "depth": 3, "num_heads": 2}
DROPS = ("drop", "pos_drop", "proj_drop", "attn_drop", "drop_path", "patch_drop")


def tiny(**options):
    torch.manual_seed(0)
    return VisionTransformer3D(**{**TINY, **options})


def noisy(**options):
    """A tiny network in float64 and eval mode, with noise on every parameter."""
    net = tiny(**options).double().eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(0.2 * randn(*p.shape, seed=i))
    return net


def volume(*size, seed=7):
    return randn(2, 1, *(size or TINY["img_size"]), seed=seed)


@contextmanager
def fused_attention(enable):
    before = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(enable)
    try:
        yield
    finally:
        set_fused_attn(*before)


# ---- features


def test_feature_info_and_numbers():
    net = tiny(in_chans=2, num_classes=5)
    assert [f["module"] for f in net.feature_info] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(f["num_chs"] == 24 and f["reduction"] == 4 and f["patch_size"] == (4, 4, 2) for f in net.feature_info)
    assert (net.num_features, net.head_hidden_size, net.embed_dim, net.in_chans, net.num_classes) == (24, 24, 24, 2, 5)
    assert net.get_classifier() is net.head
    assert net.head.weight.shape == (5, 24)
    net.set_input_size(patch_size=(8, 4, 2))
    assert all(f["reduction"] == 8 and f["patch_size"] == (8, 4, 2) for f in net.feature_info)


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("out_indices", "blocks"), [(2, [1, 2]), ((0, -2), [0, 1]), ([1], [1]), ((-1,), [2])])
def test_feature_getter_net(out_indices, blocks, norm):
    net = noisy(num_classes=5)
    want = net.forward_intermediates(volume(), blocks, norm=norm, output_fmt="NCHWD", intermediates_only=True)
    features = FeatureGetterNet(copy.deepcopy(net), out_indices, norm=norm)
    close(features(volume()), want)
    assert features.feature_info.channels() == [24] * len(blocks)
    assert features.feature_info.reduction() == [4] * len(blocks)
    assert features.feature_info.module_name() == [f"blocks.{i}" for i in blocks]
    assert len(features.model.blocks) == blocks[-1] + 1


@torch.no_grad()
@pytest.mark.parametrize("pool", ["cls_token", "avg", "map"])
def test_prune_intermediate_layers(pool):
    net = noisy(num_classes=5, global_pool=pool)
    want = net.forward_intermediates(volume(), 1, intermediates_only=True)
    logits = net(volume())
    kept = copy.deepcopy(net)
    assert kept.prune_intermediate_layers(3, prune_head=False) == [0, 1, 2]
    close(kept(volume()), logits)

    assert net.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    close(net(volume()), want[0])  # neither norm, pooling nor head is left
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {
        *("cls_token", "pos_embed", "patch_embed", "blocks")
    }
    assert (net.num_classes, len(net.feature_info)) == (0, 2)


@pytest.mark.parametrize("indices", [0, 4, [3], [-4]])
def test_prune_refuses(indices):
    net = tiny()
    with pytest.raises(ValueError, match="3"):
        net.prune_intermediate_layers(indices)
    assert len(net.blocks) == 3


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_get_intermediate_layers(norm):
    net = noisy(reg_tokens=2)
    whole = net.forward_intermediates(volume(), [1, 2], norm=norm, intermediates_only=True)
    maps = net.forward_intermediates(volume(), [1, 2], norm=norm, output_fmt="NCHWD", intermediates_only=True)
    for n in (2, [1, 2], (-1, -2)):
        close(net.get_intermediate_layers(volume(), n, norm=norm), [y[:, 3:] for y in whole])
    close(net.get_intermediate_layers(volume(), 2, reshape=True, norm=norm), maps)
    pairs = net.get_intermediate_layers(volume(), 2, return_prefix_tokens=True, norm=norm)
    close([torch.cat(pair[::-1], dim=1) for pair in pairs], whole)
    with pytest.raises(ValueError, match=r"last 4 blocks.* has 3"):
        net.get_intermediate_layers(volume(), 4)


@torch.no_grad()
def test_attention_extract_by_hook():
    with fused_attention(False):
        net = noisy()
    maps = AttentionExtract(net, method="hook")(volume())
    assert list(maps) == [f"blocks.{i}.attn.attn_drop" for i in range(3)]
    tokens = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embed(volume())], 1) + net.pos_embed
    q, k, _ = net.blocks[0].attn.qkv(net.blocks[0].norm1(tokens)).reshape(2, 25, 3, 2, 12).permute(2, 0, 3, 1, 4)
    close(maps["blocks.0.attn.attn_drop"], (q @ k.mT / 12**0.5).softmax(-1))


# ---- timm's factory, presets


@torch.no_grad()
def test_timm_create_model():
    options = {"img_size": (16, 8, 8), "patch_size": (8, 8, 4), "depth": 3, "num_classes": 2}
    torch.manual_seed(0)
    net = timm.create_model("vit3d_tiny", **options).eval()
    torch.manual_seed(0)
    same = create_preset("vit3d_tiny", **options).eval()
    x = volume(16, 8, 8).float()
    assert (type(net), net.embed_dim, len(net.blocks)) == (VisionTransformer3D, 192, 3)
    torch.testing.assert_close(net(x), same(x), rtol=0, atol=0)

    torch.manual_seed(0)
    features = timm.create_model("vit3d_tiny", features_only=True, out_indices=(0, 2), **options).eval()
    want = same.forward_intermediates(x, (0, 2), output_fmt="NCHWD", intermediates_only=True)
    torch.testing.assert_close(features(x), want, rtol=0, atol=0)
    assert features.feature_info.reduction() == [8, 8]
    assert set(PRESETS) == set(timm.list_models("vit3d_*"))
    with pytest.raises(ValueError, match="pretrained=False"):
        timm.create_model("vit3d_tiny", pretrained=True)


@torch.no_grad()
def test_timm_create_model_loads_a_checkpoint(tmp_path):
    options = {"img_size": 8, "patch_size": 4, "depth": 1, "num_classes": 2}
    net = create_preset("vit3d_tiny", **options).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    loaded = timm.create_model("vit3d_tiny", checkpoint_path=tmp_path / "w.pth", **options).eval()
    x = volume(8, 8, 8).float()
    torch.testing.assert_close(loaded(x), net(x), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "peer"),
    [
        ("vit3d_tiny", 192, "vit_tiny_patch16_224"),
        ("vit3d_small", 384, "vit_small_patch16_224"),
        ("vit3d_base", 768, "vit_base_patch16_224"),
        ("vit3d_large", 1024, "vit_large_patch16_224"),
        ("vit3d_huge", 1280, "vit_huge_patch14_224"),
    ],
)
def test_preset_has_timms_names_and_shapes(name, width, peer):
    preset = PRESETS[name]
    assert (preset.embed_dim, preset.embed_dim / preset.num_heads) == (width, 64)
    ours = create_preset(name, device="meta", num_classes=7).state_dict()
    theirs = timm.create_model(peer, device="meta", num_classes=7).state_dict()
    assert ours.pop("patch_embed.proj.weight").shape == (width, 1, 16, 16, 16)
    assert ours.pop("pos_embed").shape == (1, 1 + 6**3, width)
    assert set(theirs) - set(ours) == {"patch_embed.proj.weight", "pos_embed"}
    assert {k: v.shape for k, v in ours.items()} == {k: theirs[k].shape for k in ours}


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"vit3d_giant.*vit3d_tiny.*vit3d_huge"):
        create_preset("vit3d_giant")


# ---- input size


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 12, 8), (4, 20, 14), (8, 8, 2)])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"class_token": False}])
def test_set_input_size_resamples_trilinearly(options, size):
    net = noisy(**{"global_pool": "avg", **options})
    p = 0 if net.no_embed_class else net.num_prefix_tokens
    new = copy.deepcopy(net)
    new.set_input_size(size)
    grid = (size[0] // 4, size[1] // 4, size[2] // 2)
    old_map = net.pos_embed[:, p:].mT.reshape(1, 24, 2, 3, 4)
    new_map = F.interpolate(old_map, grid, mode="trilinear", align_corners=False)
    close(new.pos_embed.data, torch.cat([net.pos_embed[:, :p], new_map.flatten(2).mT], 1))
    assert (new.grid_size, new.num_patches) == (grid, grid[0] * grid[1] * grid[2])

    built = noisy(**{"global_pool": "avg", **options, "img_size": size})
    built.load_state_dict(new.state_dict())
    close(new(volume(*size)), built(volume(*size)))
    with pytest.raises(ValueError, match="img_size"):
        new(volume())


@pytest.mark.parametrize("trained", [True, False])
def test_set_input_size_keeps_the_parameters_kind(trained):
    net = tiny(dtype=torch.bfloat16).requires_grad_(trained)
    net.set_input_size((8, 8, 8), (2, 4, 2))
    for p in (net.pos_embed, net.patch_embed.proj.weight):
        assert (type(p), p.dtype, p.requires_grad) == (nn.Parameter, torch.bfloat16, trained)


@pytest.mark.parametrize("pos_embed", ["sincos", "none"])
def test_set_input_size_without_learned_positions(pos_embed):
    net = noisy(pos_embed=pos_embed)
    net.set_input_size((16, 8, 6))
    built = noisy(pos_embed=pos_embed, img_size=(16, 8, 6))
    built.load_state_dict(net.state_dict())
    close(net(volume(16, 8, 6)), built(volume(16, 8, 6)))


@torch.no_grad()
@pytest.mark.parametrize("scale", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2), (3, 1, 2)])
def test_larger_patch_gives_the_same_tokens(scale):
    # <x, w> == <resize(x), w'> wherever the resize loses nothing, so whole networks agree
    net = noisy(in_chans=2)
    patch = tuple(p * s for p, s in zip((4, 4, 2), scale))
    x = randn(2, 2, 8, 12, 8)
    patches = x.reshape(2, 2, 2, 4, 3, 4, 4, 2).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(0, 3)
    patches = F.interpolate(patches, patch, mode="trilinear", align_corners=False)
    big = patches.reshape(2, 2, 3, 4, 2, *patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    size = tuple(g * p for g, p in zip((2, 3, 4), patch))

    new = copy.deepcopy(net)
    new.set_input_size(size, patch)
    close(new.patch_embed(big.reshape(2, 2, *size)), net.patch_embed(x))
    close(new(big.reshape(2, 2, *size)), net(x))


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_smaller_patch_solves_least_squares(axis):
    # a resize that loses something: the new kernel is the least-squares solution of resize^T w' = w
    net = noisy(patch_size=(4, 4, 4))
    new = copy.deepcopy(net)
    new.set_input_size(patch_size=[2 if a == axis else 4 for a in range(3)])
    resize = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)
    kernel = net.patch_embed.proj.weight.movedim(axis + 2, 0).flatten(1)
    want = torch.linalg.lstsq(resize.T, kernel).solution
    close(new.patch_embed.proj.weight.movedim(axis + 2, 0).flatten(1), want)


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        (((9, 12, 8), None), r"\(9, 12, 8\).*\(4, 4, 2\).*\(12, 12, 8\)"),
        ((None, (3, 4, 2)), r"\(8, 12, 8\).*\(3, 4, 2\).*\(9, 12, 8\)"),
        (((8, 12), None), r"img_size=\(8, 12\)"),
    ],
)
def test_set_input_size_refuses_and_changes_nothing(sizes, match):
    net = noisy()
    want = net(volume())
    with pytest.raises(ValueError, match=match):
        net.set_input_size(*sizes)
    close(net(volume()), want)


# ---- training


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"attn_layer": "diff", "reg_tokens": 2}, {"rope": "patch"}])
def test_grad_checkpointing(options, masked):
    results = []
    for enable in (False, True):
        net, runs = noisy(num_classes=5, **options), []
        net.set_grad_checkpointing(enable)
        net.blocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        tokens = net.num_patches + net.num_prefix_tokens
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril(4) if masked else None
        out = net.train()(volume(), attn_mask=mask)
        out.square().sum().backward()
        assert len(runs) == 1 + enable  # once more in the backward pass
        results.append((out, {name: p.grad for name, p in net.named_parameters()}))
    close(*results)
    net.set_grad_checkpointing(False)
    assert not net.grad_checkpointing


def decay_table(net):
    names = {id(p): name for name, p in net.named_parameters()}
    groups = param_groups_layer_decay(net, 0.05, net.no_weight_decay(), layer_decay=0.5)
    return {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"global_pool": "map", "class_token": False}])
def test_layer_decay_as_timm(options):
    options = {**TINY, "reg_tokens": 2, "pre_norm": True, "num_classes": 5, **options}
    table = decay_table(VisionTransformer3D(**options))
    flat = {"img_size": (8, 12), "patch_size": 4, "global_pool": options.get("global_pool", "token")}
    assert table == decay_table(VisionTransformer(**{**options, **flat}))

    scale = {name: s for name, (s, _) in table.items()}
    stem = {name for name in scale if name.split(".")[0] in ("cls_token", "reg_token", "pos_embed", "patch_embed")}
    blocks = [{s for name, s in scale.items() if name.startswith(f"blocks.{i}.")} for i in range(3)]
    assert [len(b) for b in blocks] == [1, 1, 1]
    order = [*(min(b) for b in blocks), scale["head.weight"]]
    assert {scale[name] for name in stem} == {min(scale.values())}
    assert min(scale.values()) < order[0] < order[1] < order[2] < order[3] == 1


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_are_timms_parameter_by_parameter(coarse):
    options = {"embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5, "reg_tokens": 1, "pre_norm": True}
    ours = VisionTransformer3D(8, 4, **options)
    theirs = VisionTransformer(8, 4, **options)
    groups = [group_parameters(net, net.group_matcher(coarse=coarse), reverse=True) for net in (ours, theirs)]
    assert groups[0] == groups[1]
    assert len(set(groups[0].values())) == 5  # stem, three blocks (the last one with the norm), head


def test_no_weight_decay():
    assert tiny(reg_tokens=2).no_weight_decay() == {"pos_embed", "cls_token", "reg_token"}
    assert tiny(pos_embed="sincos").no_weight_decay() == {"cls_token"}
    assert tiny(pos_embed="none", class_token=False, global_pool="avg").no_weight_decay() == set()


def test_patch_dropout_drops_patches_in_training_only():
    net = noisy(patch_drop_rate=0.75, reg_tokens=2)
    assert net.train().forward_features(volume()).shape == (2, 3 + 6, 24)
    with pytest.raises(ValueError, match="patch_drop_rate"):
        net.forward_intermediates(volume(), output_fmt="NCHWD")
    plain = noisy(reg_tokens=2)
    close(net.eval().forward_features(volume()), plain.forward_features(volume()))


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("attn_layer", ["attn", "diff"])
def test_dropouts_are_off_in_eval(attn_layer, fused):
    with fused_attention(fused):
        plain = noisy(num_classes=5, attn_layer=attn_layer)
        nets = {name: noisy(num_classes=5, attn_layer=attn_layer, **{f"{name}_rate": 0.5}) for name in DROPS}
    assert plain.blocks[0].attn.fused_attn is fused
    want = plain(volume())
    for name, net in nets.items():
        close(net(volume()), want)
        assert (net.train()(volume()) - want).abs().max() > 1e-3, name


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"attn_layer": "diff"}, {"block_fn": DiffParallelScalingBlock}])
def test_fused_attention_gives_the_same_numbers(options):
    outs = []
    for fused in (True, False):
        with fused_attention(fused):
            outs.append(noisy(**options)(volume()))
    close(*outs)


# ---- heads


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pool", [None, "avg", "map", "max", ""])
def test_reset_classifier_keeps_dtype(pool, dtype):
    net = tiny(num_classes=3, dtype=dtype, final_norm=False)
    net.reset_classifier(5, pool)
    assert {p.dtype for p in net.parameters()} == {dtype}
    out = net(volume().to(dtype))
    assert (out.shape, out.dtype) == ((2, 25, 5) if pool == "" else (2, 5), dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("pool", [None, "avg", "map"])
def test_reset_classifier_keeps_mode(pool, final_norm, training):
    net = tiny(num_classes=3, final_norm=final_norm).train(training)
    net.reset_classifier(5, pool)
    assert [name for name, m in net.named_modules() if m.training is not training] == []


def test_reset_classifier_on_meta_and_to_none():
    net = tiny(num_classes=3, device="meta")
    net.reset_classifier(5, "map")
    assert all(p.is_meta for p in net.parameters())
    net.reset_classifier(0)
    assert isinstance(net.head, nn.Identity)
    assert (net.num_classes, net.get_classifier()) == (0, net.head)


@torch.no_grad()
def test_norms_move_with_the_pool():
    net = noisy(num_classes=5)
    norm, tokens = net.norm, net.forward_features(volume())
    net.reset_classifier(5, "avg")
    assert net.fc_norm is norm
    raw = net.forward_features(volume())
    close(norm(raw), tokens)
    close(net.forward_head(raw, pre_logits=True), norm(raw[:, 1:].mean(1)))
    for pool in ("max", "map", "cls_token"):
        net.reset_classifier(5, pool)
        assert (net.norm is norm, type(net.fc_norm)) == (True, nn.Identity)
    close(net.forward_head(net.forward_features(volume()), pre_logits=True), tokens[:, 0])


@pytest.mark.parametrize("fc_norm", [True, False])
def test_explicit_fc_norm_stays(fc_norm):
    net = tiny(fc_norm=fc_norm)
    before = net.norm, net.fc_norm
    for pool in ("avg", "max", "cls_token"):
        net.reset_classifier(5, pool)
        assert (net.norm, net.fc_norm) == before


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"final_norm": False}])
def test_reset_classifier_equals_building(options):
    for first in ("cls_token", "avg", "max", "map", ""):
        for then in ("cls_token", "avg", "max", "map", ""):
            net = tiny(global_pool=first, num_classes=3, **options)
            net.reset_classifier(5, then)
            built = tiny(global_pool=then, num_classes=5, **options)
            assert {k: v.shape for k, v in net.state_dict().items()} == {
                k: v.shape for k, v in built.state_dict().items()
            }


@pytest.mark.parametrize("pool", ["prr", "mean", "cls_token", "token"])
def test_reset_classifier_refuses_and_changes_nothing(pool):
    net = noisy(class_token=False, global_pool="avg", num_classes=3)
    want = net(volume())
    with pytest.raises(ValueError, match=f"'{pool}'.*(needs a class token|expected one of)"):
        net.reset_classifier(5, pool)
    assert (net.global_pool, net.num_classes) == ("avg", 3)
    close(net(volume()), want)


# ---- construction and init


@pytest.mark.parametrize("how", ["device argument", "device context"])
@pytest.mark.parametrize(
    "options",
    [
        {"reg_tokens": 2, "pre_norm": True},
        {"pos_embed": "sincos", "global_pool": "avg"},
        {"global_pool": "map", "init_values": 0.1, "attn_layer": "diff"},
        {"block_fn": ResPostBlock, "init_values": 0.1, "mlp_layer": "swiglu", "pos_embed": "none"},
        {"block_fn": DiffParallelScalingBlock, "weight_init": "jax_nlhb"},
        {"weight_init": "moco", "qk_norm": True},
    ],
)
def test_meta_device(options, how):
    options = {"num_classes": 5, "drop_path_rate": 0.1, **options}
    if how == "device argument":
        net = tiny(device="meta", **options)
    else:
        with torch.device("meta"):
            net = tiny(**options)
    assert all(t.is_meta for t in net.state_dict().values())

    net.to_empty(device="cpu")
    with torch.no_grad():
        for t in [*net.parameters(), *net.buffers()]:
            t.fill_(float("nan"))
        net.init_weights()
    built = tiny(**options)
    if options.get("pos_embed") == "sincos":
        torch.testing.assert_close(net.pos_embed, built.pos_embed, rtol=0, atol=0)
    for name, p in net.named_parameters():
        want = built.get_parameter(name)
        assert p.isfinite().all(), name
        assert (p == p.flatten()[0]).all() == (want == want.flatten()[0]).all(), name
        if (want == want.flatten()[0]).all():
            torch.testing.assert_close(p, want, rtol=0, atol=0)
        elif p.numel() > 100:
            assert 0.5 < p.std() / want.std() < 2, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
def test_dtype_argument(dtype, pos_embed):
    net = tiny(dtype=dtype, pos_embed=pos_embed, global_pool="map", reg_tokens=2, qk_norm=True, init_values=0.1)
    assert {t.dtype for t in [*net.parameters(), *net.buffers()]} == {dtype}
    assert net(volume().to(dtype)).dtype == dtype


@torch.no_grad()
@pytest.mark.parametrize("when", ["built", "called"])
@pytest.mark.parametrize("mode", ["", "jax", "jax_nlhb", "moco", "reset", "skip"])
def test_weight_init_has_timms_statistics(mode, when):
    # 128 wide, so that a spread is known to a few percent; the patches hold 64 voxels in both
    options = {"embed_dim": 128, "depth": 1, "num_heads": 2, "num_classes": 100, "reg_tokens": 16}
    options["weight_init"] = mode if when == "built" or mode == "skip" else ""
    torch.manual_seed(0)
    ours, theirs = VisionTransformer3D(8, 4, **options), VisionTransformer(16, 8, in_chans=1, **options)
    if when == "called":
        ours.init_weights(None if mode == "skip" else mode)
        theirs.init_weights("" if mode == "skip" else mode)
    for name, p in ours.named_parameters():
        want = theirs.get_parameter(name)
        if when == "built" and mode == "skip" and name in ("cls_token", "reg_token", "pos_embed"):
            continue  # timm leaves these empty
        if (want == want.flatten()[0]).all():
            assert (p == want.flatten()[0]).all(), name
        else:
            assert p.std().item() == pytest.approx(want.std().item(), rel=0.25), name
            assert p.mean().item() == pytest.approx(want.mean().item(), abs=0.5 * want.std().item()), name


def test_init_weights_refuses_an_unknown_mode():
    net = tiny()
    with pytest.raises(ValueError, match=r"'bogus'.*'jax'"):
        net.init_weights("bogus")


@pytest.mark.parametrize("again", [False, True])
def test_modules_own_init_is_respected(again):
    # gates that start open, layer scales in the norms: a scheme for Linear would overwrite them
    post = tiny(block_fn=ResPostBlock, init_values=1e-3)
    gates = [tiny(mlp_layer=mlp) for mlp in (SwiGLU, GluMlp)]
    if again:
        for net in (post, *gates):
            net.init_weights()
    swiglu, glu = (net.blocks[1].mlp for net in gates)
    assert (post.blocks[2].norm2.weight == 1e-3).all()
    assert (swiglu.fc1_g.bias == 1).all()
    assert (glu.fc1.bias == torch.tensor([0.0, 1.0]).repeat_interleave(48)).all()
    assert swiglu.fc1_g.weight.std() < 1e-5 < 1e-2 < swiglu.fc1_x.weight.std()


class SmallBlock(nn.Module):
    def __init__(self, dim, num_heads, depth):
        super().__init__()
        self.got, self.scale = (dim, num_heads, depth), nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * self.scale


class HungryBlock(SmallBlock):
    def __init__(self, dim, **kwargs):
        super().__init__(dim, kwargs["num_heads"], kwargs["depth"])
        self.kwargs = kwargs


class SmallEmbed(PatchEmbed3D):
    def __init__(self, img_size, patch_size, embed_dim):
        super().__init__(img_size, patch_size, 1, embed_dim)


def test_constructors_get_the_keywords_they_know():
    net = tiny(block_fn=SmallBlock, embed_layer=SmallEmbed)
    assert [b.got for b in net.blocks] == [(24, 2, 0), (24, 2, 1), (24, 2, 2)]
    assert net(volume().float()).shape == (2, 24)
    known = {"num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias"}
    known |= {"proj_drop", "attn_drop", "drop_path", "norm_layer", "act_layer", "mlp_layer", "attn_layer", "depth"}
    hungry = tiny(block_fn=HungryBlock, proj_drop_rate=0.1, attn_drop_rate=0.2, drop_path_rate=0.4)
    kwargs = [b.kwargs for b in hungry.blocks]
    assert set(kwargs[0]) - {"device", "dtype"} == known
    assert [k["drop_path"] for k in kwargs] == pytest.approx([0, 0.2, 0.4])
    assert (kwargs[1]["proj_drop"], kwargs[1]["attn_drop"]) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("options", "gamma"),
    [
        ({"init_values": 1e-4}, 1e-4),
        ({"block_fn": partial(Block, init_values=1e-3)}, 1e-3),
        ({"block_fn": partial(Block, init_values=1e-3), "init_values": 1e-4}, 1e-4),
        ({}, None),
    ],
)
def test_init_values(options, gamma):
    scales = [ls for block in tiny(**options).blocks for ls in (block.ls1, block.ls2)]
    if gamma is None:
        assert {type(ls) for ls in scales} == {nn.Identity}
    else:
        assert all((ls.gamma == gamma).all() for ls in scales)


# ---- copies


def by_pickle(net):
    return pickle.loads(pickle.dumps(net))


def by_torch_save(net):
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def by_state_dict(net):
    new = noisy(dynamic_img_size=True, pos_embed=net.pos_embed_type, num_classes=5)
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()
    new.load_state_dict(net.state_dict())
    return new


@torch.no_grad()
@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
@pytest.mark.parametrize("clone", [copy.deepcopy, by_pickle, by_torch_save, by_state_dict])
def test_copies_after_another_size(clone, pos_embed):
    net = noisy(dynamic_img_size=True, pos_embed=pos_embed, num_classes=5)
    x = volume(12, 8, 6)
    want = net(x)
    new = clone(net)
    close(new(x), want)
    assert ("pos_embed" in net.state_dict()) == (pos_embed == "learned")
    new.cls_token.add_(randn(1, 1, 24))
    if pos_embed == "learned":
        new.pos_embed.add_(randn(*new.pos_embed.shape))
    assert (new(x) - want).abs().max() > 1e-3
    close(net(x), want)


# ---- former names


def test_taps_is_the_former_name_of_out_indices():
    with pytest.warns(DeprecationWarning, match="taps is now out_indices"):
        net = TokenSegmenter(noisy(depth=4), "light", num_classes=2, taps=(1,))
    assert net.out_indices == [1]
    with pytest.warns(DeprecationWarning, match="taps is now out_indices"):
        assert net.taps == [1]
    with pytest.warns(DeprecationWarning, match="taps is now out_indices"):
        classifier = TokenClassifier(noisy(depth=4), "linear", num_classes=2, taps=(0, 2))
    assert classifier.out_indices == [0, 2]
    both = pytest.raises(ValueError, match="one argument: expected out_indices")
    with pytest.warns(DeprecationWarning, match="taps is now"), both:
        TokenClassifier(noisy(depth=4), "linear", num_classes=2, taps=(0,), out_indices=(1,))


@torch.no_grad()
def test_forward_visible_is_the_former_name_of_forward_masked():
    net, ids_keep = noisy(), torch.tensor([[0, 3], [2, 1]])
    with pytest.warns(DeprecationWarning, match="forward_visible is now forward_masked"):
        assert torch.equal(net.forward_visible(volume(), keep=ids_keep), net.forward_masked(volume(), ids_keep))


# ---- embeddings by name


@pytest.mark.parametrize(("name", "kind"), EMBED_LAYERS.items())
def test_embeddings_by_name(name, kind):
    net = VisionTransformer3D((8, 16, 8), (4, 8, 2), embed_dim=12, depth=1, num_heads=2, embed_layer=name)
    assert type(net.patch_embed) is kind
    assert net(torch.zeros(1, 1, 8, 16, 8)).shape == (1, 12)


def test_unknown_embedding():
    with pytest.raises(ValueError, match=r"embed_layer='stem'; expected one of 'patch', 'conv_stem'"):
        VisionTransformer3D(8, 4, embed_dim=12, depth=1, num_heads=2, embed_layer="stem")


# ---- timm's newest arguments


def test_fix_init_scales_the_two_projections_of_each_block_as_timm():
    nets = []
    for fix_init in (False, True):
        torch.manual_seed(0)
        nets.append(VisionTransformer3D(8, 4, embed_dim=12, depth=3, num_heads=2, fix_init=fix_init))
    plain, fixed = (net.state_dict() for net in nets)
    for key, value in fixed.items():
        scaled = key.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        scale = math.sqrt(2 * (int(key.split(".")[1]) + 1)) if scaled else 1
        torch.testing.assert_close(value * scale, plain[key])
    peer = timm.models.VisionTransformer(8, 4, embed_dim=12, depth=3, num_heads=2, weight_init="skip")
    peer.blocks.load_state_dict(nets[0].blocks.state_dict())
    peer.fix_init_weight()
    for key, value in peer.blocks.state_dict().items():
        torch.testing.assert_close(fixed[f"blocks.{key}"], value)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["rmsnorm", nn.LayerNorm])
def test_norm_of_the_patch_embedding(layer):
    net = noisy(embed_norm_layer=layer)
    tokens = net.patch_embed.proj(volume()).flatten(2).mT
    close(net.patch_embed(volume()), net.patch_embed.norm(tokens))
    assert isinstance(net.patch_embed.norm, nn.LayerNorm if layer is nn.LayerNorm else nn.Module)
    assert not isinstance(net.patch_embed.norm, nn.Identity)
    assert isinstance(noisy().patch_embed.norm, nn.Identity)


@torch.no_grad()
def test_patch_grids_are_contiguous():
    net = noisy()
    assert all(grid.is_contiguous() for grid in net.forward_intermediates(volume(), [0, 1], output_fmt="NCHWD")[1])
