"""What a backbone is made of, as JSON, builds it again: the same keys, the same outputs bit for bit."""

import json
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.layers import GluMlp, Mlp, RmsNorm, SwiGLU, get_norm_layer
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers import ConvStem3D, PatchEmbed3D, RotaryPositions3D, set_spacing
from monai_vit3d.networks import TokenClassifier, VisionTransformer3D
from monai_vit3d.networks.layer_facts import unlike_layers
from monai_vit3d.networks.model_args import build_network, model_args

SMALL = {"img_size": (8, 12, 8), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
NORMS = [
    nn.LayerNorm, "layernorm", "rmsnorm", "simplenorm", "layernormfp32", partial(nn.LayerNorm, eps=1e-6), nn.RMSNorm,
    partial(nn.LayerNorm, bias=False), partial(nn.LayerNorm, elementwise_affine=False), partial(RmsNorm, affine=False),
    lambda width, **how: nn.LayerNorm(width, eps=1e-3, **how),
]  # fmt: skip
ACTS = ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "hard_mish", partial(nn.GELU, approximate="tanh"),
        partial(nn.LeakyReLU, negative_slope=0.2), partial(nn.ELU, alpha=0.5), lambda: nn.Mish()]  # fmt: skip
MLPS = ["mlp", "glumlp", "swiglu", "gatedmlp", partial(GluMlp, gate_last=False), None]
BLOCKS = [Block, ResPostBlock, ParallelScalingBlock, partial(ParallelScalingBlock, fuse_out_proj=True),
          DiffParallelScalingBlock, partial(DiffParallelScalingBlock, dual_lambda=True), ParallelThingsBlock,
          partial(ParallelThingsBlock, num_parallel=3)]  # fmt: skip
UNITS = [None, "patch", "mm", "box",
         partial(RotaryPositions3D, unit="mm", unit_mm=8.0, pairs=(3, 3, 0), temperature=50.0,
                 rotate_half=True)]  # fmt: skip


def awake(net, seed=0):
    """The network with no parameter at a special value, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def built_again(net, **overrides):
    return build_network(json.loads(json.dumps(model_args(net))), **overrides)


@torch.no_grad()
def assert_same(net, again):
    assert list(again.state_dict()) == list(net.state_dict())
    assert unlike_layers(net, again) == []
    again.load_state_dict(net.state_dict())
    again.eval()
    x = torch.randn(2, net.in_chans, *net.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    for one in (net, again):
        if one.rope is not None and one.rope.unit == "mm":
            set_spacing(one, (1.0, 0.7, 5.0))
    assert torch.equal(again(x), net(x))
    assert model_args(again) == model_args(net)


def has_weight(norm):
    return getattr(get_norm_layer(norm)(4), "weight", None) is not None


@st.composite
def options(draw):
    flag = st.booleans()
    names = "qkv_bias qk_norm proj_bias class_token no_embed_class pre_norm final_norm dynamic_img_size dynamic_img_pad"
    found = {name: draw(flag) for name in [*names.split(), "pool_include_prefix"]}
    found |= {"reg_tokens": draw(st.sampled_from([0, 2])), "num_classes": draw(st.sampled_from([0, 3]))}
    found["pos_embed"] = draw(st.sampled_from(["learned", "sincos", "none"]))
    found["fc_norm"] = draw(st.sampled_from([None, True, False]))
    pools = ["avg", "max", "avgmax", "map", ""] + ["token", "cls_token"] * found["class_token"]
    found["global_pool"] = draw(st.sampled_from(pools))
    found["init_values"] = draw(st.sampled_from([None, 0.1]))
    found["in_chans"] = draw(st.sampled_from([1, 2]))
    found["mlp_ratio"] = draw(st.sampled_from([4.0, 8 / 3]))
    found |= {"norm_layer": draw(st.sampled_from(NORMS)), "act_layer": draw(st.sampled_from(ACTS))}
    found |= {"embed_layer": draw(st.sampled_from([PatchEmbed3D, ConvStem3D])), "rope": draw(st.sampled_from(UNITS))}
    found["mlp_layer"] = draw(st.sampled_from(MLPS))
    if found["rope"] is None:
        found["block_fn"] = draw(st.sampled_from(BLOCKS))
        found["attn_layer"] = draw(st.sampled_from(["attn", "diff"]))
    # timm's ResPostBlock writes init_values into its norms' weights, and fails where they have none
    assume(found.get("block_fn") is not ResPostBlock or found["init_values"] is None or has_weight(found["norm_layer"]))
    norms = draw(flag) and "Scaling" not in str(found.get("block_fn"))
    return {**found, "scale_attn_norm": norms, "scale_mlp_norm": norms}


@pytest.mark.slow
@given(options=options())
def test_every_network_of_named_layers_is_built_again(options):
    net = awake(VisionTransformer3D(**{**SMALL, **options}))
    assert_same(net, built_again(net))


@pytest.mark.parametrize("norm", NORMS, ids=map(str, range(len(NORMS))))
def test_every_norm_is_built_again(norm):
    net = awake(VisionTransformer3D(**SMALL, norm_layer=norm, qk_norm=True))
    assert_same(net, built_again(net))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("rates", [{}, {"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "patch_drop_rate": 0.5}], ids=str)
def test_every_block_is_built_again_and_regularisers_are_the_callers_own(block, rates):
    net = awake(VisionTransformer3D(**SMALL, block_fn=block, **rates))
    assert_same(net, built_again(net))


def test_it_is_what_the_network_became():
    net = VisionTransformer3D(**SMALL)
    net.set_input_size((12, 12, 4), (4, 4, 2))
    net.reset_classifier(5, "avg")
    found = model_args(net)
    assert (found["img_size"], found["patch_size"], found["grid_size"]) == ([12, 12, 4], [4, 4, 2], [3, 3, 2])
    assert (found["num_classes"], found["global_pool"], found["fc_norm"]) == (5, "avg", None)
    assert_same(awake(net), built_again(net))


@pytest.mark.parametrize("pool", ["cls_token", "avg"])
def test_a_pruned_backbone_is_built_again_as_it_is(pool):
    net = TokenClassifier(VisionTransformer3D(**SMALL), "linear", 3, out_indices=(0,)).backbone
    assert_same(awake(net), built_again(net))
    net = VisionTransformer3D(**SMALL, global_pool=pool, fc_norm=True, num_classes=2)
    net.prune_intermediate_layers(1, prune_norm=True)
    assert model_args(net)["final_norm"] is False
    assert_same(awake(net), built_again(net))


class Mlp2(Mlp):
    pass


Namesake = type("Mlp", (Mlp2,), {"__module__": "elsewhere"})


@pytest.mark.parametrize("layer", [Mlp2, Namesake], ids=["another name", "a known name"])
def test_a_layer_without_a_name_must_be_handed(layer):
    net = awake(VisionTransformer3D(**SMALL, mlp_layer=layer))
    found = model_args(net)
    assert found["foreign"] == {"mlp_layer": f"{layer.__module__}.{layer.__name__}"}
    with pytest.raises(WeightsError, match=rf"mlp_layer: '.*{layer.__name__}'\. Pass the classes: mlp_layer=\.\.\."):
        build_network(found)
    assert_same(net, built_again(net, mlp_layer=layer))
    assert type(built_again(net, mlp_layer=layer).blocks[1].mlp) is layer


def test_rotary_positions_of_ones_own_must_be_handed():
    class Own(RotaryPositions3D):
        pass

    net = awake(VisionTransformer3D(**SMALL, rope=Own))
    with pytest.raises(WeightsError, match=r"rope: '.*Own'\. Pass the classes: rope=\.\.\."):
        built_again(net)
    assert_same(net, built_again(net, rope=Own))


def test_overrides_are_taken_instead():
    net = VisionTransformer3D(**SMALL, num_classes=3)
    again = built_again(net, img_size=16, num_classes=7, drop_path_rate=0.3, device="meta")
    assert (again.grid_size, again.num_classes, again.head.weight.device.type) == ((4, 4, 4), 7, "meta")
    assert again.blocks[1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("change", [
    {"act_layer": "os.system"}, {"block_fn": "Linear"}, {"embed_dim": "wide"}, {"depth": 0}, {"img_size": [8, 8]},
    {"norm_layer": ["LayerNorm"]}, {"mlp_options": {"gate": 1}}, {"rope": {"unit": "miles"}}, {"foreign": 3},
    {"patch_size": None}, {"mlp_options": {"act_layer": "x", "no": 1}}, {"norm_eps": "small", "norm_options": [1]},
], ids=str)  # fmt: skip
def test_what_is_no_architecture_is_refused(change):
    with pytest.raises(WeightsError):
        build_network({**model_args(VisionTransformer3D(**SMALL)), **change})


def test_networks_that_differ_are_told_apart():
    net = VisionTransformer3D(**SMALL)
    for options, name in (
        ({"num_heads": 3}, "blocks.0.attn"),
        ({"act_layer": "silu"}, "blocks.1.mlp.act"),
        ({"mlp_layer": SwiGLU}, "blocks.0.mlp"),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-6)}, "norm"),
        ({"init_values": 0.1}, "blocks.0.ls1"),
        ({"reg_tokens": 1}, "reg_token"),
        ({"rope": "patch"}, "rope"),
    ):
        assert name in unlike_layers(net, VisionTransformer3D(**{**SMALL, **options})), options
    assert unlike_layers(net, VisionTransformer3D(**SMALL, drop_rate=0.5, drop_path_rate=0.1).double()) == []
