"""nidl's VisionTransformer3D: its layout by key names, its fixed positions, and the network itself if installed."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.weights.convert.nidl import nidl_sincos
from monai_vit3d.weights.sources import backbone_from, identify

SIZE, PATCH, GRID = (8, 12, 8), (4, 4, 2), (2, 3, 4)
WIDTH, DEPTH, HEADS = 24, 2, 2
EXACT = {"rtol": 0, "atol": 1e-12}


def state_dict(prefix=("cls_token",), places=25, **extra):
    """Random weights under the names that nidl gives them (timm's, with a 3D kernel)."""
    shapes = {"patch_embed.proj.weight": (WIDTH, 2, *PATCH), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {"cls_token": (1, 1, WIDTH)} if "cls_token" in prefix else {}
    shapes |= {"reg_token": (1, 2, WIDTH)} if "reg_token" in prefix else {}
    shapes |= {"pos_embed": (1, places, WIDTH)} if places else {}
    for i in range(DEPTH):
        block = {"norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH)}
        block |= {"attn.qkv.bias": (3 * WIDTH,), "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,)}
        block |= {
            "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,),
            "mlp.fc1.weight": (60, WIDTH),
            "mlp.fc1.bias": (60,),
        }
        block |= {"mlp.fc2.weight": (WIDTH, 60), "mlp.fc2.bias": (WIDTH,)}
        shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,), **extra}
    generator = torch.Generator().manual_seed(0)
    made = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
    return {key: value if "token" in key or "norm" in key else 0.3 * value for key, value in made.items()}


def computed(state, x, pos=None):
    """The tokens, by the formulas of Dosovitskiy et al. 2021, from the tensors by name."""
    x = F.conv3d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    patches = x.permute(0, 2, 3, 4, 1).reshape(len(x), -1, WIDTH)
    prefix = [state[key].expand(len(x), -1, -1) for key in ("cls_token", "reg_token") if key in state]
    pos = state["pos_embed"] if pos is None else pos
    if pos.shape[1] == patches.shape[1]:
        x = torch.cat([*prefix, patches + pos], 1)
    else:
        x = torch.cat([*prefix, patches], 1) + pos
    for i in range(DEPTH):
        x = x + attention(state, f"blocks.{i}.attn.", norm(state, f"blocks.{i}.norm1.", x))
        hidden = F.gelu(linear(state, f"blocks.{i}.mlp.fc1.", norm(state, f"blocks.{i}.norm2.", x)))
        x = x + linear(state, f"blocks.{i}.mlp.fc2.", hidden)
    return norm(state, "norm.", x)


def linear(state, name, x):
    return x @ state[f"{name}weight"].T + state[f"{name}bias"]


def norm(state, name, x):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * state[f"{name}weight"] + state[f"{name}bias"]


def attention(state, name, x):
    q, k, v = linear(state, f"{name}qkv.", x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return linear(state, f"{name}proj.", (weights @ v).transpose(1, 2).flatten(2))


def volume(dtype=torch.float64):
    return torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(1), dtype=dtype)


@torch.no_grad()
@pytest.mark.parametrize(("prefix", "places"), [
    (("cls_token",), 25), (("cls_token",), 24), (("cls_token", "reg_token"), 27), (("cls_token", "reg_token"), 24),
    (("reg_token",), 26), ((), 24),
])  # fmt: skip
def test_the_tokens_by_name(prefix, places):
    state, x = state_dict(prefix, places), volume()
    source = identify(state)
    assert source.family == "nidl"
    assert "norm_layer" in source.assumed  # no tensor shows its eps
    net, report = backbone_from(source, img_size=SIZE, num_heads=HEADS)
    torch.testing.assert_close(net.forward_features(x), computed(state, x), **EXACT)
    assert set(report.loaded) == set(state)
    assert (report.converted, report.missing, report.unexpected) == ({}, (), ())


@torch.no_grad()
def test_a_cubic_grid_needs_no_size_and_a_larger_one_resamples():
    state = state_dict(places=28)
    source = identify(state)
    assert source.options["img_size"] == (12, 12, 6)
    assert {"img_size", "global_pool", "no_embed_class"} < set(source.assumed)
    net = backbone_from(source, num_heads=HEADS).network
    assert torch.equal(net.pos_embed, state["pos_embed"])
    larger, report = backbone_from(source, num_heads=HEADS, img_size=(24, 12, 6))
    assert report.converted == {"pos_embed": "(1, 28, 24) to (1, 55, 24)"}
    patches = state["pos_embed"][:, 1:].reshape(1, 3, 3, 3, WIDTH).permute(0, 4, 1, 2, 3)
    want = F.interpolate(patches, (6, 3, 3), mode="trilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(larger.pos_embed[:, 1:], want, **EXACT)
    assert torch.equal(larger.pos_embed[:, :1], state["pos_embed"][:, :1])


@torch.no_grad()
@pytest.mark.parametrize("prefix", [("cls_token", "reg_token"), ()])
def test_fixed_positions_are_nidls_own_and_must_be_asked_for(prefix):
    state, x = state_dict(prefix, places=0), volume()
    with pytest.raises(WeightsError, match=r"no tensor shows .*pos_embed; pass .*pos_embed=\. .*'sincos' is nidl's"):
        backbone_from(state, img_size=SIZE, num_heads=HEADS)
    said = {"img_size": SIZE, "num_heads": HEADS}
    net, report = backbone_from(state, pos_embed="sincos", **said)
    torch.testing.assert_close(net.forward_features(x), computed(state, x, table(GRID, WIDTH)), rtol=0, atol=1e-6)
    assert not net.pos_embed.requires_grad
    assert report.converted == {"pos_embed": "nidl's sin-cos table"}
    bare = backbone_from(state, pos_embed="none", **said).network
    zero = torch.zeros(1, 24, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(bare.forward_features(x), computed(state, x, zero), **EXACT)


def table(grid, width):
    """Row n of the table belongs to place n of a grid of (W, H, D), whatever the patches' own places are."""
    channels = math.ceil(width / 6)
    rows = []
    for place in product(range(grid[1]), range(grid[0]), range(grid[2])):
        row = [
            turn(at / 10000 ** (c / channels)) for at in place for turn in (math.sin, math.cos) for c in range(channels)
        ]
        rows.append(row[:width])
    return torch.tensor([rows], dtype=torch.float64)


@pytest.mark.parametrize(("grid", "width"), [((2, 3, 4), 24), ((3, 3, 3), 32), ((4, 2, 1), 7), ((1, 1, 1), 6)])
def test_fixed_positions(grid, width):
    torch.testing.assert_close(nidl_sincos(grid, width).double(), table(grid, width), rtol=0, atol=1e-6)
    assert nidl_sincos(grid, width).dtype == torch.float32


def test_what_shapes_show():
    state = state_dict(("reg_token",), 29, **{"fc_norm.weight": (WIDTH,), "head.weight": (5, WIDTH)})
    state = {key: value for key, value in state.items() if key not in ("norm.weight", "norm.bias")}
    for i in range(DEPTH):
        state |= {f"blocks.{i}.attn.{part}_norm.weight": torch.ones(6) for part in "qk"}
        state |= {f"blocks.{i}.ls1.gamma": torch.ones(WIDTH)}
        del state[f"blocks.{i}.attn.qkv.bias"]
    options = identify(state).options
    shown = {"in_chans": 2, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "mlp_ratio": 2.5, "num_heads": 4}
    shown |= {"qkv_bias": False, "qk_norm": True, "proj_bias": True, "class_token": False, "reg_tokens": 2}
    shown |= {"fc_norm": True, "final_norm": True, "num_classes": 5, "global_pool": "avg", "img_size": (12, 12, 6)}
    assert options.items() >= shown.items()
    assert "num_heads" not in identify(state).assumed


def test_blocks_of_another_kind_are_refused():
    state = state_dict()
    for i in range(DEPTH):
        state[f"blocks.{i}.mlp.fc1_g.weight"] = state.pop(f"blocks.{i}.mlp.fc1.weight")
    with pytest.raises(WeightsError, match=r"^w\.pt: timm's layout, but not timm's Block with its Attention and Mlp"):
        identify(state, "w.pt")


@torch.no_grad()
@pytest.mark.parametrize("options", [
    {"num_classes": 3}, {"class_token": False, "global_pool": "avg", "num_classes": 3},
    {"global_pool": "avgmax", "reg_tokens": 2}, {"reg_tokens": 3, "no_embed_class": True, "qk_norm": True},
    {"pre_norm": True, "qkv_bias": False, "proj_bias": False}, {"pos_embed": "sincos"}, {"pos_embed": "none"},
], ids=str)  # fmt: skip
def test_nidl_itself(options):
    vit3d = pytest.importorskip("nidl.volume.backbones.vit3d")
    torch.manual_seed(0)
    sizes = {"in_chans": 2, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    model, x = vit3d.VisionTransformer3D(SIZE, PATCH, **sizes, **options).double().eval(), volume()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    said = {key: options[key] for key in ("pos_embed", "global_pool") if key in options}
    net = backbone_from(model.state_dict(), img_size=SIZE, num_heads=HEADS, **said).network
    torch.testing.assert_close(net.forward_features(x), model.forward_features(x), **EXACT)
    torch.testing.assert_close(net(x), model(x), **EXACT)
