"""MONAI's UNETR and ours compute the same, both ways, for every option; what cannot be carried over is refused."""

from contextlib import suppress
from functools import partial

import pytest
import torch
from monai.networks.nets import UNETR
from torch import nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from monai_vit3d.weights.convert import from_monai_unetr, to_monai_unetr

SMALL = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 40, "num_heads": 2}
AFFINE = ("instance", {"affine": True})


def monai_unetr(img_size=(32, 48, 32), in_channels=2, out_channels=3, **options):
    """A UNETR none of whose tensors is at its start: norms and running statistics too."""
    torch.manual_seed(0)
    net = UNETR(in_channels, out_channels, img_size, **{**SMALL, **options})
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value) if "running_var" in key else 0.05 * torch.randn_like(value))
    return net.eval()


def ours(img_size=(32, 48, 32), patch=16, out_indices=(3, 6, 9), decoder=None, **options):
    torch.manual_seed(0)
    plain = {"class_token": False, "global_pool": "", "embed_dim": 24, "depth": 12, "num_heads": 2}
    backbone = VisionTransformer3D(img_size, patch, 2, **{**plain, **options})
    return TokenSegmenter(backbone, "unetr", 3, out_indices, **{"feature_size": 4, **(decoder or {})}).eval()


@torch.no_grad()
def difference(a, b, img_size=(32, 48, 32), in_channels=2):
    x = torch.randn(2, in_channels, *img_size, generator=torch.Generator().manual_seed(0))
    expected = a(x)
    assert expected.std() > 0.05
    return (b(x) - expected).abs().max()


def is_unused(key):
    return ".norm_cross_attn." in key


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_name": "batch"},
        {"norm_name": AFFINE},
        {"res_block": False},
        {"conv_block": False},
        {"res_block": False, "conv_block": False, "norm_name": "batch"},
        {"qkv_bias": True},
        {"in_channels": 1, "out_channels": 1, "num_heads": 4},
        {"img_size": (64, 96, 32)},
        {"img_size": (32, 32, 64), "qkv_bias": True, "norm_name": AFFINE, "feature_size": 2},
    ],
    ids=str,
)
def test_equal_there_and_back(options):
    unetr = monai_unetr(**options)
    shape = {"img_size": options.get("img_size", (32, 48, 32)), "in_channels": options.get("in_channels", 2)}
    net = from_monai_unetr(unetr)
    assert difference(unetr, net, **shape) < 1e-5
    back = to_monai_unetr(net)
    assert difference(unetr, back, **shape) < 1e-6
    state = back.state_dict()
    assert state.keys() == unetr.state_dict().keys()
    for key, value in unetr.state_dict().items():
        assert is_unused(key) or torch.equal(state[key], value), key


@pytest.mark.slow
def test_equal_at_full_size():
    options = {"img_size": (96, 96, 96), "hidden_size": 96, "num_heads": 4, "mlp_dim": 192, "feature_size": 8}
    unetr = monai_unetr(in_channels=1, **options)
    net = from_monai_unetr(unetr)
    assert difference(unetr, net, (96, 96, 96), 1) < 1e-5
    assert difference(unetr, to_monai_unetr(net), (96, 96, 96), 1) < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False, "decoder": {"norm_name": "batch"}},
        {"decoder": {"res_block": False, "conv_block": False}},
        {"decoder": {"norm_name": AFFINE, "conv_block": False}, "mlp_ratio": 2.5},
        {"global_pool": "avg", "num_classes": 5, "dynamic_img_size": True},
        {"final_norm": True, "weight_init": "jax", "drop_rate": 0.5},
    ],
    ids=str,
)
def test_a_segmenter_of_ours_becomes_monais(options):
    net = ours(**options)
    assert difference(net, to_monai_unetr(net)) < 1e-5


@pytest.mark.slow
def test_gradients_are_equal():
    unetr = monai_unetr()
    net = from_monai_unetr(unetr)
    x = torch.randn(1, 2, 32, 48, 32)
    for network in (unetr, net):
        network(x).square().mean().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    found = to_monai_unetr(net).state_dict()  # our gradients under MONAI's names
    for key, parameter in unetr.named_parameters():
        if not is_unused(key):
            torch.testing.assert_close(found[key], parameter.grad, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize(("dtype", "training"), [(torch.float64, True), (torch.bfloat16, False)])
def test_dtype_mode_and_dropout(dtype, training):
    unetr = monai_unetr(dropout_rate=0.3).to(dtype).train(training)
    net = from_monai_unetr(unetr)
    back = to_monai_unetr(net)
    for network in (net, back):
        assert {p.dtype for p in network.parameters()} == {dtype}
        assert {m.training for m in network.modules()} == {training}
    rates = {name: m.p for name, m in unetr.named_modules() if isinstance(m, nn.Dropout)}
    assert set(rates.values()) == {0.3}
    assert {name: m.p for name, m in back.named_modules() if isinstance(m, nn.Dropout)} == rates
    ours_ = [m.p for m in net.backbone.modules() if isinstance(m, nn.Dropout) and m is not net.backbone.head_drop]
    assert ours_ == [0.3] * len(rates)


@pytest.mark.slow
def test_no_unused_parameters():
    unetr = monai_unetr()
    net = from_monai_unetr(unetr)
    x = torch.randn(1, 2, 32, 48, 32)
    for network in (unetr, net):
        network(x).square().sum().backward()
    idle = [name for name, p in unetr.named_parameters() if p.grad is None]
    assert len(idle) == 24
    assert all(map(is_unused, idle))
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not any("cross" in name for name in net.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 2, "img_size": (32, 48)}, "3D UNETR"),
        ({"norm_name": ("group", {"num_groups": 2})}, "GroupNorm.*; expected norm_name 'instance' or 'batch'"),
    ],
)
def test_foreign_unetr_refused(options, message):
    with pytest.raises(WeightsError, match=message):
        from_monai_unetr(monai_unetr(**options))


@pytest.mark.parametrize("norm", [("instance", {"eps": 0.1}), ("batch", {"eps": 0.1}), ("batch", {"affine": False})])
@pytest.mark.parametrize("convert", [from_monai_unetr, to_monai_unetr])
def test_norm_options_are_kept_or_refused(norm, convert):
    net = monai_unetr(norm_name=norm) if convert is from_monai_unetr else ours(decoder={"norm_name": norm})
    with suppress(WeightsError):
        assert difference(net, convert(net)) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_indices": (2, 5, 8)}, r"out_indices=\(2, 5, 8\), expected \(3, 6, 9\)"),
        ({"patch": (16, 16, 8)}, r"patch_size=\(16, 16, 8\), expected 16"),
        ({"patch": 8, "out_indices": (3, 6)}, r"patch_size=\(8, 8, 8\), expected 16; out_indices=\(3, 6\)"),
        ({"depth": 10}, "10 blocks, expected 12"),
        ({"reg_tokens": 1}, "prefix tokens"),
        ({"class_token": True}, "prefix tokens"),
        ({"pos_embed": "sincos"}, "positions are not learned"),
        ({"pos_embed": "none"}, "positions are not learned"),
        ({"decoder": {"deep_supervision": True}}, "deep supervision"),
        ({"decoder": {"norm_name": ("group", {"num_groups": 2})}}, "expected norm_name 'instance' or 'batch'"),
        ({"pre_norm": True}, "norm_pre"),
    ],
    ids=str,
)
def test_reasons(options, message):
    with pytest.raises(WeightsError, match=message):
        to_monai_unetr(ours(**options))


class OtherDecoder(nn.Module):
    @staticmethod
    def num_maps(patch_size):
        return 4


def test_another_decoder_refused():
    backbone = ours().backbone
    with pytest.raises(WeightsError, match="not a UNETRDecoder"):
        to_monai_unetr(TokenSegmenter(backbone, OtherDecoder(), out_indices=(3, 6, 9)))


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": True},
        {"scale_attn_norm": True},
        {"scale_mlp_norm": True},
        {"init_values": 0.1},
        {"final_norm": False},
        {"proj_bias": False},
        {"mlp_layer": "swiglu"},
        {"norm_layer": "rmsnorm"},
        {"norm_layer": partial(nn.LayerNorm, eps=0.1)},
        {"act_layer": "relu"},
    ],
    ids=str,
)
def test_what_monai_cannot_express_is_refused(options):
    with pytest.raises(WeightsError):
        to_monai_unetr(ours(**options))
