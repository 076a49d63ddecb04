"""MONAI's ViT, and the encoders of its autoencoders and UNETR, compute the same here, both ways, for every option."""

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNETR, MaskedAutoEncoderViT, ViT, ViTAutoEnc
from torch import nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from monai_vit3d.weights.convert import from_monai_unetr, from_monai_vit, to_monai_unetr, to_monai_vit
from monai_vit3d.weights.convert.monai_keys import kernel_to_linear, linear_to_kernel
from monai_vit3d.weights.sources import backbone_from, identify

SIZE, PATCH = (8, 12, 8), (4, 4, 2)  # a grid of (2, 3, 4): no side, no patch and no place can be taken for another
SMALL = {"hidden_size": 24, "mlp_dim": 40, "num_layers": 2, "num_heads": 2}
POSITIONS = ("learnable", "sincos", "none")
EXACT = {"rtol": 0, "atol": 1e-12}


def noisy(net, dtype=torch.float64):
    """No tensor keeps a special value, and positions that are fixed stay what they are."""
    net = net.to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return net.eval()


def monai_vit(size=SIZE, patch=PATCH, chans=2, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return noisy(ViT(chans, size, patch, **{**SMALL, **options}), dtype)


def ours(**options):
    torch.manual_seed(0)
    small = {"in_chans": 2, "embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": ""}
    return noisy(VisionTransformer3D(SIZE, PATCH, **{**small, **options}))


def volume(size=SIZE, chans=2, dtype=torch.float64):
    return torch.randn(2, chans, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def same_weights(one, other):
    """All but the norms that MONAI makes for cross-attention and never uses."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one if "cross_attn" not in key)


GRID = [
    {"proj_type": proj, "pos_embed_type": pos, "qkv_bias": bias, **head}
    for proj, pos, bias, head in product(
        ("conv", "perceptron"),
        POSITIONS,
        (False, True),
        ({}, {"classification": True}, {"classification": True, "post_activation": "none", "num_classes": 3}),
    )
]


@torch.no_grad()
@pytest.mark.parametrize("options", GRID, ids=lambda options: " ".join(map(str, options.values())))
def test_equal_there_and_back(options):
    vit, x = monai_vit(**options), volume()
    want, blocks = vit(x)
    net = from_monai_vit(vit, SIZE)
    torch.testing.assert_close(net(x), want, **EXACT)
    assert want.std() > 1e-2
    taps = net.forward_intermediates(x, [0, 1], norm=False, output_fmt="NLC", intermediates_only=True)
    for ours_, theirs in zip(taps, blocks):
        torch.testing.assert_close(ours_, theirs, **EXACT)
    back = to_monai_vit(net, options["proj_type"])
    torch.testing.assert_close(back(x)[0], want, **EXACT)
    assert same_weights(back.state_dict(), vit.state_dict())
    fixed = options["pos_embed_type"] == "sincos"
    assert net.pos_embed.requires_grad is back.patch_embedding.position_embeddings.requires_grad is not fixed


@torch.no_grad()
def test_fourier_positions_are_kept_as_they_are():
    vit, x = monai_vit(pos_embed_type="fourier"), volume()
    net = from_monai_vit(vit, SIZE)
    torch.testing.assert_close(net(x), vit(x)[0], **EXACT)
    assert not net.pos_embed.requires_grad
    assert same_weights(to_monai_vit(net).state_dict(), vit.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_equal_in_single_precision(proj_type):
    vit = monai_vit(proj_type=proj_type, dtype=torch.float32, hidden_size=96, num_heads=3, num_layers=4, save_attn=True)
    x = volume(dtype=torch.float32)
    net = from_monai_vit(vit, SIZE)
    # the product of patches is summed in another order, which some processors round further apart
    torch.testing.assert_close(net(x), vit(x)[0], rtol=0, atol=3e-5)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.slow
@torch.no_grad()
@settings(max_examples=12)
@given(
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    patch=st.tuples(*[st.integers(1, 4)] * 3),
    chans=st.integers(1, 3),
    heads=st.integers(1, 3),
    depth=st.integers(1, 2),
    mlp_dim=st.integers(1, 50),
    proj_type=st.sampled_from(["conv", "perceptron"]),
    options=st.fixed_dictionaries({"classification": st.booleans(), "qkv_bias": st.booleans()}),
)
def test_equal_whatever_the_sizes(grid, patch, chans, heads, depth, mlp_dim, proj_type, options):
    size = tuple(n * p for n, p in zip(grid, patch))
    shape = {"hidden_size": 6 * heads, "num_heads": heads, "num_layers": depth, "mlp_dim": mlp_dim}
    vit = monai_vit(size, patch, chans, proj_type=proj_type, **shape, **options)
    x = volume(size, chans)
    net = from_monai_vit(vit, size)
    torch.testing.assert_close(net(x), vit(x)[0], rtol=0, atol=1e-11)
    assert same_weights(to_monai_vit(net, proj_type).state_dict(), vit.state_dict())
    again = backbone_from(vit.state_dict(), img_size=size, patch_size=patch, in_chans=chans, num_heads=heads).network
    torch.testing.assert_close(again(x), vit(x)[0], rtol=0, atol=1e-11)


def test_a_linear_patch_embedding_is_a_convolution_with_channels_last():
    weight = torch.randn(5, 2 * 3 * 4 * 7, dtype=torch.float64)
    kernel = linear_to_kernel(weight, (2, 3, 4))
    patch = torch.randn(7, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(
        (kernel * patch).flatten(1).sum(1), weight @ patch.permute(1, 2, 3, 0).flatten(), **EXACT
    )
    assert torch.equal(kernel_to_linear(kernel), weight)
    with pytest.raises(WeightsError, match=r"\(5, 168\), which is no number of channels .* patch of \(5, 3, 4\)"):
        linear_to_kernel(weight, (5, 3, 4))


def test_gradients_are_equal():
    vit = monai_vit(proj_type="perceptron", classification=True)
    net, x = from_monai_vit(vit, SIZE), volume()
    vit(x)[0].square().sum().backward()
    net(x).square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    found = to_monai_vit(net, "perceptron").state_dict()  # our gradients under MONAI's names
    for key, parameter in vit.named_parameters():
        if "cross_attn" not in key:
            torch.testing.assert_close(found[key], parameter.grad, msg=key)


@pytest.mark.parametrize("training", [True, False])
def test_mode_dtype_and_dropout(training):
    vit = monai_vit(dropout_rate=0.3).to(torch.bfloat16).train(training)
    net = from_monai_vit(vit, SIZE)
    back = to_monai_vit(net)
    for network in (net, back):
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
        assert {m.training for m in network.modules()} == {training}
    assert [m.p for m in back.modules() if isinstance(m, nn.Dropout)] == [0.3] * 9
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout) and m is not net.head_drop] == [0.3] * 9


def test_the_size_is_a_cube_or_said():
    cube = monai_vit(8, 4)
    assert from_monai_vit(cube).patch_embed.img_size == (8, 8, 8)
    assert from_monai_vit(monai_vit((9, 15, 8), PATCH), (9, 15, 8)).patch_embed.img_size == SIZE
    with pytest.raises(UsageError, match="img_size=None, but 24 patches are no cube"):
        from_monai_vit(monai_vit())
    with pytest.raises(UsageError, match=r"img_size=\(8, 8, 8\) has 16 patches of \(4, 4, 2\), but the ViT has 24"):
        from_monai_vit(monai_vit(), (8, 8, 8))


# a backbone of ours becomes MONAI's


@torch.no_grad()
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "none"])
@pytest.mark.parametrize("head", [
    {},
    {"class_token": True, "global_pool": "cls_token", "num_classes": 3},
    {"class_token": True, "global_pool": "cls_token", "num_classes": 3, "no_embed_class": True},
], ids=str)  # fmt: skip
def test_a_backbone_of_ours_becomes_monais(proj_type, pos_embed, head):
    net, x = ours(pos_embed=pos_embed, dynamic_img_size=True, **head), volume()
    vit = to_monai_vit(net, proj_type)
    torch.testing.assert_close(vit(x)[0], net(x), **EXACT)
    assert vit.patch_embedding.position_embeddings.requires_grad is (pos_embed == "learned")
    assert vit.patch_embedding.proj_type == proj_type


@pytest.mark.parametrize(("options", "message"), [
    ({"reg_tokens": 1}, "it has register tokens"),
    ({"class_token": True, "global_pool": "cls_token"}, "neither a class token and a head on it, nor"),
    ({"global_pool": "avg"}, "neither a class token and a head on it, nor"),
    ({"num_classes": 3}, "neither a class token and a head on it, nor"),
    ({"class_token": True}, "neither a class token and a head on it, nor"),
    ({"rope": "patch"}, "rotary positions"),
    ({"patch_drop_rate": 0.1}, "drops patches"),
    ({"pos_embed": "sincos", "embed_dim": 32}, "embed_dim=32 is no multiple of 6"),
    ({"pre_norm": True}, "no place for norm_pre"),
    ({"qk_norm": True}, "q_norm"),
    ({"init_values": 0.1}, "ls1.gamma"),
    ({"final_norm": False}, "norm"),
    ({"proj_bias": False}, "proj.bias|out_proj.bias"),
    ({"mlp_layer": "swiglu"}, "fc1"),
    ({"norm_layer": partial(nn.LayerNorm, eps=1e-6)}, "eps=1e-06.* where MONAI has .*eps=1e-05"),
    ({"act_layer": "relu"}, "ReLU.* where MONAI has .*GELU"),
    ({"drop_path_rate": 0.1}, "drop_path"),
    ({"attn_drop_rate": 0.1}, "Dropout"),
], ids=str)  # fmt: skip
def test_what_monai_cannot_express_is_refused(options, message):
    with pytest.raises(WeightsError, match=f"(?s)MONAI's ViT cannot express this backbone: .*({message})"):
        to_monai_vit(ours(**options))


def test_another_patch_embedding_is_refused():
    for convert, net in ((to_monai_vit, ours()), (to_monai_unetr, None)):
        with pytest.raises(UsageError, match="proj_type='linear'; expected 'conv' or 'perceptron'"):
            convert(net, "linear")
    with pytest.raises(WeightsError, match="2D"):
        from_monai_vit(monai_vit(8, 4, spatial_dims=2), 8)


# the encoders of other networks, from the module and from a state dict


def autoencoder(**options):
    torch.manual_seed(0)
    return noisy(ViTAutoEnc(2, (8, 12, 16), 4, deconv_chns=3, **{**SMALL, **options}))


def masked(**options):
    torch.manual_seed(0)
    decoder = {"decoder_hidden_size": 12, "decoder_mlp_dim": 8, "decoder_num_layers": 1, "decoder_num_heads": 2}
    return noisy(MaskedAutoEncoderViT(2, SIZE, PATCH, **decoder, **{**SMALL, **options}))


def encoded(net, x):
    """What an autoencoder's encoder computes of all patches."""
    tokens = net.patch_embedding(x)
    if isinstance(net, MaskedAutoEncoderViT):
        return net.blocks(torch.cat([net.cls_token.expand(len(x), -1, -1), tokens], 1))
    for block in net.blocks:
        tokens = block(tokens)
    return net.norm(tokens)


ENCODERS = {"monai_vit_autoenc": (autoencoder, (8, 12, 16), "conv3d_transpose"), "monai_mae": (masked, SIZE, "decoder")}


@torch.no_grad()
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_of_autoencoders(family, proj_type):
    make, size, left_out = ENCODERS[family]
    net, x = make(proj_type=proj_type), volume(size)
    want = encoded(net, x)
    torch.testing.assert_close(from_monai_vit(net).forward_features(x), want, **EXACT)
    source = identify(net.state_dict())
    assert source.family == family
    assert any(key.startswith(left_out) for key in source.left_out)
    assert all(key.startswith((left_out, "mask_tokens")) or "norm_cross_attn" in key for key in source.left_out)
    said = {} if family == "monai_vit_autoenc" or proj_type == "conv" else {"patch_size": PATCH}
    found, report = backbone_from(source, img_size=size, num_heads=2, **said)
    torch.testing.assert_close(found.forward_features(x), want, **EXACT)
    assert report.unexpected == source.left_out
    assert report.missing == ()
    came = [how.removeprefix("from ") for how in report.converted.values()]
    assert sorted([*came, *report.loaded, *report.unexpected]) == sorted(net.state_dict())


@torch.no_grad()
def test_a_masked_autoencoder_without_its_mask_gives_those_tokens():
    net = masked()
    x = volume()
    net._masking = lambda tokens, masking_ratio=None: (
        tokens,
        torch.arange(tokens.shape[1]).expand(len(tokens), -1),
        torch.zeros(tokens.shape[:2]),
    )
    seen = []
    net.decoder_embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(x)
    torch.testing.assert_close(from_monai_vit(net).forward_features(x), seen[0], **EXACT)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_unetrs_encoder_from_a_checkpoint_of_an_older_monai(proj_type):
    torch.manual_seed(0)
    sizes = {"feature_size": 2, "hidden_size": 64, "mlp_dim": 40, "num_heads": 1}
    unetr = noisy(UNETR(2, 3, 32, proj_type=proj_type, **sizes))
    state = {f"module.{key}": value for key, value in unetr.state_dict().items()}
    for i in range(12):  # made by MONAI 1.4 in every block and never used
        for part in ("out_proj", "to_q", "to_k", "to_v"):
            state[f"module.vit.blocks.{i}.cross_attn.{part}.weight"] = torch.randn(64, 64)
    state["module.vit.patch_embedding.cls_token"] = torch.randn(1, 1, 64)  # MONAI 0.x
    source = identify({"epoch": 3, "state_dict": state})
    assert (source.family, source.wrapping) == ("monai_unetr", ("state_dict", "module."))
    assert source.options["patch_size"] == (16, 16, 16)
    assert source.options["in_chans"] == 2
    net, report = backbone_from(source, num_heads=1)
    x = volume((32, 32, 32))
    want, _ = unetr.vit(x)
    torch.testing.assert_close(net(x), want, **EXACT)
    named = {*report.unexpected, *(how.removeprefix("from ") for how in report.converted.values())}
    assert named == {key.removeprefix("module.") for key in state} | {"epoch"}
    assert {"epoch", "out.conv.conv.bias", "vit.blocks.3.cross_attn.to_q.weight", "vit.patch_embedding.cls_token"} < {
        *report.unexpected
    }


@pytest.mark.slow
@torch.no_grad()
def test_a_segmenter_becomes_a_unetr_with_a_linear_patch_embedding():
    torch.manual_seed(0)
    options = {"class_token": False, "global_pool": "", "embed_dim": 12, "num_heads": 2}
    segmenter = TokenSegmenter(VisionTransformer3D(32, 16, 2, **options), "unetr", 3, (3, 6, 9), feature_size=2)
    segmenter, x = segmenter.double().eval(), volume((32, 32, 32))
    unetr = to_monai_unetr(segmenter, "perceptron")
    assert isinstance(unetr.vit.patch_embedding.patch_embeddings, nn.Sequential)
    torch.testing.assert_close(unetr(x), segmenter(x), **EXACT)
    torch.testing.assert_close(from_monai_unetr(unetr)(x), segmenter(x), **EXACT)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_unetr_with_a_linear_patch_embedding_there_and_back(dtype, share):
    """In single precision relative to the largest output: a patch's 8192 products are summed in another order."""
    torch.manual_seed(0)
    sizes = {"feature_size": 2, "hidden_size": 24, "mlp_dim": 40, "num_heads": 2}
    unetr = UNETR(2, 3, (32, 48, 32), proj_type="perceptron", **sizes).to(dtype).eval()
    unetr = noisy(unetr) if dtype == torch.float64 else unetr
    x = volume((32, 48, 32), dtype=dtype)
    net = from_monai_unetr(unetr)
    want = unetr(x)
    assert (net(x) - want).abs().max() < share * want.abs().max()
    assert same_weights(to_monai_unetr(net, "perceptron").state_dict(), unetr.state_dict())
