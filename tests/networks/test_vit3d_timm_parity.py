"""timm's 2D VisionTransformer and ours give the same numbers from the same weights, in float64."""

from functools import partial

import pytest
import torch
from timm.layers import GluMlp, SwiGLU
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from monai_vit3d.networks import VisionTransformer3D
from tests.helpers import randn

close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)

# timm's default eps is 1e-6, ours 1e-5: both get the same norm
BASE = {"embed_dim": 24, "depth": 3, "num_heads": 2, "in_chans": 1, "num_classes": 5, "global_pool": "cls_token"}
BASE["norm_layer"] = partial(nn.LayerNorm, eps=1e-6)
IMAGE, PATCH = (8, 12), (4, 2)

# fc_norm=None means something else to timm for max and avgmax, and with final_norm=False: it is given for these
CASES = {
    "plain": {},
    "no_qkv_bias": {"qkv_bias": False},
    "qk_norm": {"qk_norm": True},
    "scale_attn_norm": {"scale_attn_norm": True},
    "scale_mlp_norm": {"scale_mlp_norm": True},
    "no_proj_bias": {"proj_bias": False},
    "avg": {"global_pool": "avg"},
    "avg_no_prefix": {"global_pool": "avg", "class_token": False},
    "avg_fc_norm_off": {"global_pool": "avg", "fc_norm": False},
    "avg_include_prefix": {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True},
    "max": {"global_pool": "max", "fc_norm": True},
    "max_fc_norm_off": {"global_pool": "max", "fc_norm": False},
    "max_include_prefix": {"global_pool": "max", "fc_norm": False, "pool_include_prefix": True},
    "avgmax": {"global_pool": "avgmax", "fc_norm": True, "reg_tokens": 2},
    "avgmax_fc_norm_off": {"global_pool": "avgmax", "fc_norm": False},
    "map": {"global_pool": "map"},
    "map_fc_norm_on": {"global_pool": "map", "fc_norm": True},
    "map_include_prefix": {"global_pool": "map", "reg_tokens": 2, "pool_include_prefix": True},
    "no_pool": {"global_pool": ""},
    "no_pool_fc_norm_on": {"global_pool": "", "fc_norm": True},
    "token_fc_norm_on": {"fc_norm": True},
    "reg_tokens": {"reg_tokens": 2},
    "reg_tokens_only": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "no_embed_class": {"no_embed_class": True},
    "no_embed_class_reg_tokens": {"no_embed_class": True, "reg_tokens": 2},
    "no_positions": {"pos_embed": "none", "reg_tokens": 2},
    "pre_norm": {"pre_norm": True},
    "no_final_norm": {"final_norm": False, "fc_norm": False},
    "no_final_norm_avg": {"final_norm": False, "fc_norm": False, "global_pool": "avg"},
    "init_values": {"init_values": 0.1},
    "mlp_ratio": {"mlp_ratio": 2.5},
    "rmsnorm": {"norm_layer": "rmsnorm", "qk_norm": True},
    "silu": {"act_layer": "silu"},
    "glu_mlp": {"mlp_layer": GluMlp, "act_layer": "sigmoid"},
    "swiglu": {"mlp_layer": SwiGLU, "scale_mlp_norm": True},
    "res_post_block": {"block_fn": ResPostBlock, "init_values": 0.1},
    "parallel_scaling_block": {"block_fn": ParallelScalingBlock, "qkv_bias": False},
    "diff_parallel_scaling_block": {"block_fn": DiffParallelScalingBlock, "qk_norm": True},
    "parallel_things_block": {"block_fn": ParallelThingsBlock, "init_values": 0.1},
    "diff_attention": {"attn_layer": "diff", "qk_norm": True},
    "square": {"img_size": (8, 8), "patch_size": (4, 4)},
    "other_sides": {"img_size": (12, 4), "patch_size": (2, 4)},
    "one_patch": {"img_size": (4, 6), "patch_size": (4, 6)},
    "in_chans": {"in_chans": 3},
    "no_head": {"num_classes": 0},
    "many": {
        **{"qkv_bias": False, "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True, "proj_bias": False},
        **{"reg_tokens": 2, "no_embed_class": True, "pre_norm": True, "global_pool": "avgmax", "fc_norm": True},
        **{"init_values": 0.1, "mlp_ratio": 3, "norm_layer": "rmsnorm", "act_layer": "relu", "in_chans": 3},
    },
}
all_cases = pytest.mark.parametrize("case", CASES)
all_axes = pytest.mark.parametrize("axis", [0, 1, 2])


def randomise(net):
    """Noise on every parameter: no bias, token or layer scale stays trivial."""
    with torch.no_grad():
        for i, p in enumerate(net.double().eval().parameters()):
            p.add_(0.2 * randn(*p.shape, seed=i))
    return net


def flat_net(**options):
    """Timm's network with random weights; ours' spelling of the options."""
    options = {**BASE, "img_size": IMAGE, "patch_size": PATCH, **options}
    pool, pos = options["global_pool"], options.get("pos_embed", "learned")
    spelled = {"global_pool": "token" if pool == "cls_token" else pool, "pos_embed": pos.replace("learned", "learn")}
    torch.manual_seed(0)
    return randomise(VisionTransformer(**{**options, **spelled}))


def insert(size, axis, value=1):
    return (*size[:axis], value, *size[axis:])


def pair(axis, **options):
    """Timm's network, and ours with its weights and one more axis of one voxel."""
    flat = flat_net(**options)
    sizes = {"img_size": insert(options.pop("img_size", IMAGE), axis)}
    sizes["patch_size"] = insert(options.pop("patch_size", PATCH), axis)
    ours = VisionTransformer3D(**{**BASE, **sizes, **options}).double().eval()
    state = {k: v.unsqueeze(axis + 2) if k == "patch_embed.proj.weight" else v for k, v in flat.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in state.items()}
    ours.load_state_dict(state)
    return flat, ours


def assert_parity(flat, ours, image, volume, as_flat_map):
    """Tokens, pooled features, logits and every kind of intermediate agree."""
    want = flat.forward_features(image)
    got = ours.forward_features(volume)
    close(got, want)
    assert (want[0] - want[1]).abs().max() > 1e-2  # the weights let the input through
    close(ours.forward_head(got, pre_logits=True), flat.forward_head(want, pre_logits=True))
    close(ours(volume), flat(image))

    asked = {"norm": True, "return_prefix_tokens": True, "output_dict": True}
    want = flat.forward_intermediates(image, output_fmt="NCHW", **asked)
    got = ours.forward_intermediates(volume, None, output_fmt="NCHWD", **asked)
    got["image_intermediates"] = [as_flat_map(m) for m in got["image_intermediates"]]
    assert got.keys() == want.keys()
    for key in want:
        close(got[key], want[key])
    close(ours.get_intermediate_layers(volume, n=2), flat.get_intermediate_layers(image, n=2))


@torch.no_grad()
@all_axes
@all_cases
def test_volume_of_one_slice(case, axis):
    flat, ours = pair(axis, **CASES[case])
    image = randn(2, ours.in_chans, *flat.patch_embed.img_size)
    assert_parity(flat, ours, image, image.unsqueeze(axis + 2), lambda m: m.squeeze(axis + 2))


@torch.no_grad()
@pytest.mark.parametrize("case", [name for name, options in CASES.items() if "img_size" not in options])
def test_full_grid_against_patches_as_pixels(case):
    options = {**BASE, **CASES[case]}
    options |= {"img_size": (8, 9, 8), "patch_size": (4, 3, 2)}
    ours = randomise(VisionTransformer3D(**options))
    grid, chans = ours.grid_size, ours.in_chans
    assert grid == (2, 3, 4)
    flat = flat_net(**{**options, "img_size": (24, 1), "patch_size": 1, "in_chans": chans * 24})
    state = ours.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(24, -1, 1, 1)
    flat.load_state_dict(state)

    volume = randn(2, chans, 8, 9, 8)
    patches = volume.unfold(2, 4, 4).unfold(3, 3, 3).unfold(4, 2, 2)  # (B, C, H', W', D', h, w, d)
    pixels = patches.permute(0, 1, 5, 6, 7, 2, 3, 4).reshape(2, chans * 24, 24, 1)
    assert_parity(flat, ours, pixels, volume, lambda m: m.reshape(2, 24, 24, 1))


@torch.no_grad()
@all_axes
@pytest.mark.parametrize("size", [(7, 11), (5, 12), (8, 12)])
def test_padding(size, axis):
    flat, ours = pair(axis, dynamic_img_size=True, dynamic_img_pad=True)
    image = randn(2, 1, *size)
    assert_parity(flat, ours, image, image.unsqueeze(axis + 2), lambda m: m.squeeze(axis + 2))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize(
    "case", ["plain", "res_post_block", "parallel_scaling_block", "diff_parallel_scaling_block", "diff_attention"]
)
def test_attention_mask(case, kind):
    flat, ours = pair(1, **CASES[case])
    image, mask = randn(2, 1, *IMAGE), randn(13, 13, seed=1)
    mask = mask if kind == "float" else (mask > 0) | torch.eye(13, dtype=torch.bool)
    want = flat.forward_features(image, attn_mask=mask)
    close(ours.forward_features(image.unsqueeze(3), attn_mask=mask), want)
    assert (want - flat.forward_features(image)).abs().max() > 1e-2


@pytest.mark.parametrize("patch_drop_rate", [0.0, 0.5])
def test_training_step(patch_drop_rate):
    # the same seed draws the same dropouts: every random layer is in timm's order
    rates = {f"{k}_rate": 0.2 for k in ("drop", "pos_drop", "proj_drop", "attn_drop", "drop_path")}
    flat, ours = pair(2, reg_tokens=2, patch_drop_rate=patch_drop_rate, init_values=0.1, **rates)
    image, grads = randn(4, 1, *IMAGE), []
    for net, x in ((flat, image), (ours, image.unsqueeze(4))):
        torch.manual_seed(0)
        net.train()(x).square().sum().backward()
        grads.append({name: p.grad.flatten() for name, p in net.named_parameters()})
    close(*grads)
    assert all(g.abs().max() > 0 for g in grads[0].values())
