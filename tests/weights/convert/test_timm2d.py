"""timm's 2D Vision Transformers in 3D: the same logits, in float64, for every family; nothing is dropped in silence."""

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights.backbone import save_backbone
from monai_vit3d.weights.convert.shapes import mlp_ratio
from monai_vit3d.weights.convert.timm2d import KERNEL, create_timm2d, from_timm2d, load_timm2d
from monai_vit3d.weights.convert.timm2d import checkpoint_filter_fn as filter_3d
from monai_vit3d.weights.convert.timm2d_options import refuse_other_layers, timm_options
from monai_vit3d.weights.convert.timm2d_stats import timm_normalisation
from monai_vit3d.weights.create import create_model
from tests.weights.nets import stored

# timm's name, patch; each has something that the ones before have not
FAMILIES = {
    "augreg": ("vit_tiny_patch16_224", 16),
    "miil, no qkv bias": ("vit_base_patch16_224_miil", 16),
    "DINO": ("vit_small_patch8_224.dino", 8),
    "MAE": ("vit_base_patch16_224.mae", 16),
    "DeiT": ("deit_tiny_patch16_224", 16),
    "DeiT-3": ("deit3_small_patch16_224", 16),
    "EVA-large": ("eva_large_patch14_196", 14),
    "FlexiViT": ("flexivit_small", 16),
    "DINOv2": ("vit_small_patch14_dinov2", 14),
    "DINOv2 giant, SwiGLU": ("vit_giant_patch14_dinov2", 14),
    "DINOv2 registers": ("vit_small_patch14_reg4_dinov2", 14),
    "DINOv2 giant registers": ("vit_giant_patch14_reg4_dinov2", 14),
    "TIPSv2": ("vit_base_patch14_reg1_tipsv2", 14),
    "CLIP": ("vit_base_patch16_clip_224", 16),
    "CLIP QuickGELU": ("vit_base_patch32_clip_quickgelu_224", 32),
    "CLIP huge mlp_ratio": ("vit_gigantic_patch14_clip_224", 14),
    "SigLIP": ("vit_base_patch16_siglip_224", 16),
    "SigLIP 2, tanh": ("vit_base_patch32_siglip_256", 32),
    "SigLIP so400m": ("vit_so400m_patch14_siglip_224", 14),
    "SigLIP gap": ("vit_base_patch16_siglip_gap_224", 16),
    "gap, LayerScale": ("vit_medium_patch16_gap_240", 16),
    "registers, gap": ("vit_medium_patch16_reg4_gap_256", 16),
    "registers, map": ("vit_so150m_patch16_reg4_map_256", 16),
    "differential": ("vit_dwee_patch16_reg1_gap_256", 16),
    "parallel scaling": ("vit_pwee_patch16_reg1_gap_256", 16),
    "differential parallel": ("vit_dpwee_patch16_reg1_gap_256", 16),
    "xp: qk_norm, RMS": ("vit_base_patch16_xp_224", 16),
    "parallel things": ("vit_small_patch16_18x2_224", 16),
    "res-post norm": ("vit_base_patch16_rpn_224", 16),
    "BEiT-3": ("beit3_base_patch16_224", 16),
    "InternViT": ("vit_intern300m_patch14_448", 14),
    "AIMv2, normed patches": ("aimv2_large_patch14_224", 14),
}
HEADS = {"num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 2}
SLICES = 2  # voxels of a patch along the slice axis
EXACT = {"rtol": 0, "atol": 1e-10}


def flat(name, patch=16, seed=0, **options):
    """A tiny random float64 model of a family, on a grid of 2 x 3 patches; no parameter keeps a special value."""
    torch.manual_seed(seed)
    size = options.pop("img_size", (2 * patch, 3 * patch))
    model = timm.create_model(name, pretrained=False, img_size=size, **{**HEADS, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def sizes(model, axis=2, tokens=1):
    img, patch = list(model.patch_embed.img_size), list(model.patch_embed.patch_size)
    img.insert(axis, SLICES * tokens)
    patch.insert(axis, SLICES)
    return img, patch


def image(model, channels=3):
    return torch.randn(2, channels, *model.patch_embed.img_size, dtype=torch.float64)


def stack(x, axis=2, tokens=1):
    """A volume whose slices are all the image."""
    return x.unsqueeze(2 + axis).repeat_interleave(SLICES * tokens, 2 + axis)


def copied(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request):
    return flat(*FAMILIES[request.param])


@torch.no_grad()
def test_one_token_along_the_slices_gives_the_2d_logits(family):
    net, report = from_timm2d(family, *sizes(family))
    x = image(family)
    want = family(x)
    torch.testing.assert_close(net(stack(x)), want, **EXACT)
    assert want.std() > 1e-3
    assert set(report.loaded) | set(report.converted) == set(family.state_dict()) == set(net.state_dict())
    assert {"patch_embed.proj.weight", "pos_embed"} >= set(report.converted)
    assert (report.missing, report.unexpected) == ((), ())


@torch.no_grad()
def test_more_tokens_give_them_too_but_for_the_prefix_tokens_share_of_the_attention(family):
    k = 3
    net = from_timm2d(family, *sizes(family, tokens=k)).network
    x = image(family)
    prefix = family.num_prefix_tokens
    mask = None
    if prefix:  # a prefix token counts as much as k equal patch tokens: its logits gain log(k)
        mask = torch.zeros(1, 1, 1, prefix + net.num_patches, dtype=torch.float64)
        mask[..., :prefix] = math.log(k)
    out = net.forward_head(net.forward_features(stack(x, tokens=k), mask))
    torch.testing.assert_close(out, family(x), **EXACT)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kernel", ["mean", "center", "trilinear"])
@torch.no_grad()
def test_on_each_slice_axis(axis, kernel):
    model = flat("vit_base_patch16_siglip_gap_224")
    for tokens, positions in ((1, "factored"), (1, "repeat"), (3, "repeat")):
        how = {"axis": axis, "kernel": kernel, "positions": positions}
        net = from_timm2d(model, *sizes(model, axis, tokens), **how).network
        x = image(model)
        torch.testing.assert_close(net(stack(x, axis, tokens)), model(x), **EXACT)


@torch.no_grad()
def test_gray_gives_what_gray_as_rgb_gives(family):
    gray, rgb = (from_timm2d(family, *sizes(family, tokens=2), in_chans=n).network for n in (1, 3))
    x = torch.randn(2, 1, *gray.patch_embed.img_size, dtype=torch.float64)
    torch.testing.assert_close(gray(x), rgb(x.expand(-1, 3, -1, -1, -1)), **EXACT)


@torch.no_grad()
def test_slices_tell_apart_with_factored_positions():
    model = flat("vit_base_patch16_siglip_gap_224")
    net = from_timm2d(model, *sizes(model, tokens=3), positions="factored").network
    tokens = net.pos_embed.reshape(2, 3, 3, -1)
    assert not torch.allclose(tokens[:, :, 0], tokens[:, :, 2])
    assert not torch.allclose(net(stack(image(model), tokens=3)), model(image(model)))


def test_another_grid_and_patch_are_resampled_once_from_the_originals():
    model = flat("vit_small_patch14_reg4_dinov2", 14)
    net, report = from_timm2d(model, (24, 40, 4), (8, 8, 2), in_chans=1)
    assert set(report.converted) == {"patch_embed.proj.weight", "pos_embed"}
    assert report.converted["pos_embed"] == "(1, 6, 24) to (1, 30, 24)"
    assert report.converted["patch_embed.proj.weight"] == "(24, 3, 14, 14) to (24, 1, 8, 8, 2)"
    want = model.pos_embed.detach().float().reshape(1, 2, 3, -1).permute(0, 3, 1, 2)
    want = nn.functional.interpolate(want, size=(3, 5), mode="bicubic", antialias=True)[0].permute(1, 2, 0).double()
    for i in (0, 1):
        torch.testing.assert_close(net.pos_embed.detach().reshape(3, 5, 2, -1)[:, :, i], want, rtol=0, atol=0)


@torch.no_grad()
def test_the_filter_function_alone_does_the_same():
    model = flat("vit_base_patch16_clip_224")
    net = from_timm2d(model, *sizes(model)).network
    other = VisionTransformer3D(*sizes(model), **timm_options(model)).double().eval()
    given = model.state_dict()
    with pytest.raises(WeightsError, match=r"patches, grid=\(2, 2\)"):
        filter_3d(given, other, grid=(2, 2))
    other.load_state_dict(filter_3d(given, other))  # 2 x 3 is no square, but the network's own plane
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert given["patch_embed.proj.weight"].dim() == 4


def test_from_3d_to_3d_it_resamples_as_set_input_size_does():
    options = {"embed_dim": 12, "depth": 1, "num_heads": 2, "in_chans": 2}
    old, new = VisionTransformer3D((8, 8, 8), 4, **options), VisionTransformer3D((12, 8, 16), (6, 4, 4), **options)
    new.load_state_dict(filter_3d(old.state_dict(), new))
    old.set_input_size((12, 8, 16), (6, 4, 4))
    for key, value in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[key], value, rtol=0, atol=0)
    same = new.state_dict()
    assert all(filter_3d(same, new)[key] is same[key] for key in same)


def test_a_new_head_and_pooling_are_said_to_be_new():
    model = flat("vit_base_patch16_siglip_224")
    report = from_timm2d(model, *sizes(model), num_classes=2, global_pool="avg").report
    assert report.missing == ("head.weight", "head.bias")
    assert {key.split(".")[0] for key in report.unexpected} == {"head", "attn_pool"}
    assert set(report.unexpected) | set(report.loaded) | set(report.converted) == set(model.state_dict())
    assert "head.bias" in str(report)


@pytest.mark.parametrize(("change", "match"), [
    (lambda s: s.update(dist_token=torch.zeros(1, 1, 24)), "dist_token is not known"),
    (lambda s: s.pop("blocks.1.ls1.gamma"), "blocks.1.ls1.gamma is missing"),
    (lambda s: s.pop("head.weight"), "head.weight is missing"),
    (lambda s: s.update({"norm.weight": torch.ones(25)}), r"norm.weight is \(25,\), expected \(24,\)"),
    (lambda s: s.update({"reg_token": torch.ones(1, 3, 24)}), r"reg_token is \(1, 3, 24\)"),
])  # fmt: skip
def test_keys_that_differ_are_refused_by_name_or_reported(change, match):
    model = flat("vit_small_patch14_reg4_dinov2", 14)
    net = from_timm2d(model, *sizes(model)).network
    state = {key: value.clone() + 1 for key, value in model.state_dict().items()}
    change(state)
    before = copied(net)
    with pytest.raises(WeightsError, match=match) as caught:
        load_timm2d(net, state, name="w.pt", grid=(2, 3))
    assert str(caught.value).startswith("w.pt: ")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    report = load_timm2d(net, state, grid=(2, 3), strict=False)
    assert set(report.loaded) | set(report.converted) | set(report.unexpected) == set(state)
    assert set(report.loaded) | set(report.converted) | set(report.missing) == set(before)
    assert match.split(" ")[0] in report.unexpected + report.missing


@pytest.mark.parametrize(("options", "match"), [
    ({"act_layer": "gelu"}, "blocks.0.mlp.act is .*GELU.* made with .*QuickGELU.* 2 layers differ"),
    ({"norm_layer": nn.LayerNorm}, "blocks.0.norm1 is .*1e-05.* made with .*1e-06"),
    ({"norm_layer": "rmsnorm"}, "blocks.0.norm1 is .*RmsNorm"),
    ({"num_heads": 4}, "blocks.0.attn is .*'num_heads': 4.* made with .*'num_heads': 2"),
])  # fmt: skip
def test_layers_that_differ_where_no_tensor_shows_it_are_refused(options, match):
    model = flat("vit_tiny_patch16_224", act_layer="quick_gelu")
    with pytest.raises(WeightsError, match=match):
        from_timm2d(model, *sizes(model), **options)
    net = from_timm2d(model, *sizes(model), strict=False, **options).network
    with torch.no_grad():
        x = image(model)
        assert not torch.allclose(net(stack(x)), model(x))


@torch.no_grad()
def test_other_drop_rates_are_the_callers_own():
    model = flat("vit_tiny_patch16_224")
    net = from_timm2d(model, *sizes(model), drop_path_rate=0.1, proj_drop_rate=0.1, drop_rate=0.1).network
    x = image(model)
    torch.testing.assert_close(net(stack(x)), model(x), **EXACT)
    assert not torch.equal(net.train()(stack(x)), model(x))


@pytest.mark.parametrize(("model", "match"), [
    (lambda: flat("deit_tiny_distilled_patch16_224"), "VisionTransformerDistilled: .* mean of two heads"),
    (lambda: flat("vit_tiny_patch16_224", global_pool="prr"), "prr"),
    (lambda: nn.Linear(1, 1), "Linear"),
])  # fmt: skip
def test_what_cannot_be_hosted_is_refused_with_the_reason(model, match):
    with pytest.raises(WeightsError, match=match):
        timm_options(model())


def as_published_dinov2(model):
    """Meta's own layout of DINOv2 with registers: positions cover the class token, and there is a mask token."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    place = torch.randn(1, 1, 24, dtype=torch.float64)
    state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - place
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 24, dtype=torch.float64)
    return state


@torch.no_grad()
def test_weights_as_published_are_renamed_and_each_key_accounted_for():
    model = flat("vit_small_patch14_reg4_dinov2", 14)
    state = as_published_dinov2(model)
    keys = set(state)
    net, report = from_timm2d(model, *sizes(model), state=state, name="dinov2.pth")
    x = image(model)
    torch.testing.assert_close(net(stack(x)), model(x), **EXACT)
    assert set(state) == keys
    assert report.unexpected == ("mask_token",)
    assert report.converted["cls_token"] == "from cls_token and pos_embed"
    assert report.converted["reg_token"] == "from register_tokens"
    assert report.converted["pos_embed"] == "(1, 6, 24) to (1, 6, 24)"


@pytest.mark.parametrize("wrapping", ["model", "state_dict"])
def test_wrapped_weights_of_another_grid_are_resampled_once(wrapping):
    model, other = (flat("vit_tiny_patch16_224", img_size=size) for size in (64, 32))
    state = {"optimizer": {"step": torch.ones(())}, "epoch": 3, wrapping: model.state_dict()}
    net = from_timm2d(other, *sizes(model), state=state).network  # the weights' own grid, not that of other
    torch.testing.assert_close(net.pos_embed, model.pos_embed, rtol=0, atol=0)


@torch.no_grad()
def test_openai_clips_own_layout():
    model = flat("vit_base_patch16_clip_224")
    state = {"text_projection": torch.ones(2), "logit_scale": torch.ones(())}
    swaps = {"patch_embed.proj": "conv1", "norm_pre": "ln_pre", "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    swaps |= {"mlp.fc2": "mlp.c_proj", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj"}
    with torch.no_grad():
        model.head.bias.zero_()
    for key, value in model.state_dict().items():
        if key in ("head.weight", "head.bias"):
            continue
        name = "ln_post." + key[5:] if key.startswith("norm.") else key.replace("blocks.", "transformer.resblocks.")
        for ours, theirs in swaps.items():
            name = name.replace(ours, theirs)
        state["visual." + name] = value
    state["visual.proj"] = model.head.weight.detach().T
    state["visual.class_embedding"] = state.pop("visual.cls_token")[0, 0]
    state["visual.positional_embedding"] = state.pop("visual.pos_embed")[0]
    net, report = from_timm2d(model, *sizes(model), state=state)
    x = image(model)
    torch.testing.assert_close(net(stack(x)), model(x), **EXACT)
    assert set(report.unexpected) == {"text_projection", "logit_scale"}
    assert report.converted["head.bias"] == "zeros"
    assert report.loaded == ()


@pytest.fixture
def tiny(monkeypatch):
    """Timm's models of the name that is asked for, with two narrow blocks; the weights of one."""
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: make(name, **{**HEADS, **options}))
    torch.manual_seed(0)
    return make("vit_base_patch14_reg4_dinov2", img_size=28, **HEADS)


@torch.no_grad()
def test_by_name_from_a_state_dict_or_a_file_learned_on_another_square(tiny, tmp_path):
    name, size, patch = "vit_base_patch14_reg4_dinov2.lvd142m", (28, 28, 7), (14, 14, 7)
    save_file(tiny.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.pt").write_bytes(stored(tiny.state_dict()))
    x = torch.randn(1, 3, 28, 28)
    want = tiny.eval()(x)
    for weights in (tiny.state_dict(), tmp_path / "w.safetensors", str(tmp_path / "w.pt")):
        net, report = create_timm2d(name, size, patch, pretrained=weights)
        torch.testing.assert_close(net.eval()(x[..., None].expand(-1, -1, -1, -1, 7)), want, rtol=0, atol=1e-5)
        assert report.missing == report.unexpected == ()
    net, report = create_timm2d(name, size, patch, in_chans=1, axis=0)
    assert set(report.missing) == set(net.state_dict())
    assert net.in_chans == 1


def test_one_constructor_for_presets_and_timms_names(tiny, tmp_path):
    name, size, patch = "vit_base_patch14_reg4_dinov2", (28, 28, 2), (14, 14, 2)
    net = create_model(name, size, patch, pretrained=tiny.state_dict(), axis=2, in_chans=1)
    for key in ("reg_token", "blocks.1.ls2.gamma", "head.weight"):
        assert torch.equal(net.state_dict()[key], tiny.state_dict()[key])
    preset = create_model("vit3d_tiny", 16, depth=1)
    assert (preset.embed_dim, preset.num_classes) == (192, 0)
    for pretrained in (True, {}):
        with pytest.raises(UsageError, match="vit3d_tiny: no pretrained weights"):
            create_model("vit3d_tiny", 16, pretrained=pretrained)
    for pretrained in (False, True, tmp_path):
        with pytest.raises(ValueError, match="'vit3d_titan' is unknown"):
            create_model("vit3d_titan", pretrained=pretrained)
    with pytest.raises(WeightsError, match="resnet50"):
        create_model("resnet50")


def test_pretrained_true_asks_timm_for_its_weights(monkeypatch, tiny):
    asked = []

    def create(name, **options):
        asked.append((name, options))
        return tiny

    monkeypatch.setattr(timm, "create_model", create)
    name = "vit_base_patch14_reg4_dinov2.lvd142m"
    report = create_timm2d(name, (28, 28, 2), (14, 14, 2), pretrained=True).report
    assert asked == [(name, {"pretrained": True})]
    assert set(report.loaded) | set(report.converted) == set(tiny.state_dict())


@pytest.mark.parametrize(("weights", "match"), [
    ({}, "no patch_embed.proj.weight"),
    ({"text.weight": torch.ones(2)}, "no patch_embed.proj.weight"),
    ({"patch_embed.proj.weight": torch.ones(24, 3, 14, 14), "epoch": 3}, "cls_token is missing"),
    ({"mask_token": torch.ones(1), "register_tokens": torch.ones(1)}, "timm cannot read these weights"),
    ({"patch_embed.proj.weight": torch.ones(24, 588)}, r"of shape \(24, 588\)"),
    ({"patch_embed.proj.weight": torch.ones(24, 3, 14, 14)}, "cls_token is missing"),
    ({"patch_embed.proj.weight": torch.ones(24, 3, 14, 14, device="meta")}, "meta device"),
])  # fmt: skip
@pytest.mark.usefixtures("tiny")
def test_weights_of_something_else_are_refused(weights, match):
    with pytest.raises(WeightsError, match=match):
        create_timm2d("vit_base_patch14_reg4_dinov2", (28, 28, 2), (14, 14, 2), pretrained=weights)


def test_names_and_ways_that_are_not_known_are_refused(tmp_path):
    for name in ("resnet50", "vit_colossal_patch1_1", "beit_base_patch16_224", "vit_tiny_patch16_224.no_such_tag"):
        with pytest.raises(WeightsError, match=name):
            create_timm2d(name, 16, 16)
    with pytest.raises(WeightsError, match="no such file"):
        create_timm2d("vit_tiny_patch16_224", 16, 16, pretrained=tmp_path / "none.pt")
    model = flat("vit_tiny_patch16_224", depth=1)
    with pytest.raises(UsageError, match="kernel='median'"):
        from_timm2d(model, *sizes(model), kernel="median")
    with pytest.raises(WeightsError, match="grid="):
        from_timm2d(model, *sizes(model), grid=(3, 3))


@given(st.integers(1, 4096), st.integers(1, 16384))
def test_the_mlp_ratio_gives_the_hidden_width_back(width, hidden):
    assert int(width * mlp_ratio(width, hidden)) == hidden


def test_half_precision_becomes_float32_and_the_mode_is_kept():
    model = flat("vit_tiny_patch16_224", depth=1).to(torch.bfloat16)
    net = from_timm2d(model.train(), *sizes(model)).network
    assert net.training
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert torch.equal(net.norm.weight, model.norm.weight.float())


@pytest.mark.slow
def test_every_vision_transformer_of_timm_is_hosted_or_refused_by_name():
    refused, hosted = [], []
    for name in sorted({*timm.list_models(module="vision_transformer"), *timm.list_models(module="deit")}):
        model = timm.create_model(name, pretrained=False, depth=1, device="meta")
        try:
            options = timm_options(model)
        except WeightsError:
            refused.append(name)
            continue
        grid, patch = model.patch_embed.grid_size, model.patch_embed.patch_size
        size = (grid[0] * patch[0], grid[1] * patch[1], 2)
        net = VisionTransformer3D(size, (*patch, 2), device="meta", **options)
        shapes = {key: value.shape for key, value in model.state_dict().items() if key != KERNEL}
        assert {key: value.shape for key, value in net.state_dict().items() if key != KERNEL} == shapes, name
        refuse_other_layers(model, net)
        hosted.append(name)
    assert len(hosted) > 150
    assert all("distilled" in name for name in refused)


@torch.no_grad()
def test_sincos_positions_instead_of_the_weights_own_must_be_meant():
    model = flat("vit_tiny_patch16_224")
    with pytest.raises(WeightsError, match="pos_embed is not known"):
        from_timm2d(model, *sizes(model), pos_embed="sincos")
    assert from_timm2d(model, *sizes(model), pos_embed="sincos", strict=False).report.unexpected == ("pos_embed",)


@torch.no_grad()
def test_aimv2s_own_layout():
    model = flat("aimv2_large_patch14_224", 14)
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in (("patch_embed.", "preprocessor.patchifier."), ("pos_embed", "preprocessor.pos_embed"),
                             ("blocks.", "trunk.blocks."), ("fc1_g", "fc1"), ("fc1_x", "fc3")):  # fmt: skip
            key = key.replace(ours, theirs) if not (ours == "pos_embed" and "patchifier" in key) else key
        key = "trunk.post_trunk_norm." + key[5:] if key.startswith("norm.") else key
        state[key.replace(".norm1.", ".norm_1.").replace(".norm2.", ".norm_2.")] = value
    net, report = from_timm2d(model, *sizes(model), state=state)
    x = image(model)
    torch.testing.assert_close(net(stack(x)), model(x), **EXACT)
    assert report.missing == report.unexpected == ()
    assert report.converted["patch_embed.norm.weight"] == "from preprocessor.patchifier.norm.weight"


def test_the_networks_tensors_are_its_own():
    model = flat("vit_small_patch14_reg4_dinov2", 14)
    model.requires_grad_(False)
    given = copied(model)
    net = from_timm2d(model, *sizes(model)).network
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, given[key]) for key, value in model.state_dict().items())


def test_keys_that_share_memory_in_a_file_do_not_train_as_one(tiny, tmp_path):
    state, whole = tiny.state_dict(), torch.randn(3, 24)
    state["norm.weight"] = state["blocks.0.norm1.weight"]
    state["norm.bias"] = whole[1]
    torch.save(state, tmp_path / "w.pt")
    net = create_model("vit_base_patch14_reg4_dinov2", (28, 28, 2), (14, 14, 2), pretrained=tmp_path / "w.pt")
    places = [parameter.untyped_storage().data_ptr() for parameter in net.parameters()]
    assert len(set(places)) == len(places)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in net.parameters())
    assert torch.equal(net.norm.bias, whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("weight_init", ["", "jax_nlhb", "moco", "reset", "skip"])
def test_what_does_not_come_starts_as_ever_and_alone_takes_random_numbers(weight_init):
    model = flat("vit_base_patch16_siglip_224")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    net = from_timm2d(model, *sizes(model), weight_init=weight_init).network
    assert torch.equal(torch.get_rng_state(), before)
    made = from_timm2d(model, *sizes(model), num_classes=90, weight_init=weight_init).network
    assert not torch.equal(torch.get_rng_state(), before) or weight_init == "jax_nlhb"  # whose heads are constant
    for key, value in net.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(made.state_dict()[key], value), key
    torch.manual_seed(3)
    plain = VisionTransformer3D(*sizes(model), **{**timm_options(model), "num_classes": 90}, weight_init=weight_init)
    assert made.head.weight.dtype == torch.float64
    assert made.head.weight.std().item() == pytest.approx(plain.head.weight.std().item(), rel=0.1)
    assert made.head.bias.mean().item() == pytest.approx(plain.head.bias.mean().item(), abs=0.1)
    assert not made.head.weight.isnan().any()


def test_device_and_dtype_are_those_that_were_asked_for():
    model = flat("vit_tiny_patch16_224", depth=1)
    net = from_timm2d(model, *sizes(model), dtype=torch.bfloat16, num_classes=7).network
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert torch.equal(net.norm.weight, model.norm.weight.bfloat16())
    assert from_timm2d(model, *sizes(model), device="meta").network.norm.weight.is_meta


class Halved(nn.Module):
    """A block with a buffer that no state dict has."""

    def __init__(self, dim, num_heads, device=None):
        super().__init__()
        self.register_buffer("factor", torch.full((1,), 0.5, device=device), persistent=False)

    def forward(self, x):
        return x * self.factor


def test_buffers_that_no_file_has_keep_their_values(tmp_path):
    options = {"depth": 1, "block_fn": Halved, "pos_embed": "sincos"}
    net = create_model("vit3d_tiny", 16, 8, **options)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    other = create_model("vit3d_tiny", 16, 8, pretrained=tmp_path / "w.safetensors", **options)
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(other(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_preset_from_a_file(tmp_path, suffix, pos_embed):
    net = create_model("vit3d_tiny", 16, 8, depth=1, pos_embed=pos_embed, global_pool="avg")
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(net.state_dict(), path)
    else:
        save_backbone(net, path)
    options = {"depth": 1, "pos_embed": pos_embed, "global_pool": "avg"}
    other = create_model("vit3d_tiny", 16, 8, pretrained=str(path), **options, num_classes=3)
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(other.forward_features(x), net.forward_features(x))
    assert 0.01 < other.head.weight.std() < 0.03
    assert not other.head.bias.any()
    with pytest.raises(WeightsError, match=r"norm1.bias is not known|num_heads=3 came"):
        create_model("vit3d_tiny", 16, 8, pretrained=path, **options, num_heads=6, norm_layer="rmsnorm")
    with pytest.raises(WeightsError, match="no such file"):
        create_model("vit3d_tiny", 16, 8, pretrained=tmp_path / "none.pt")
    double = create_model("vit3d_tiny", 16, 8, pretrained=path, **options, dtype=torch.float64)
    assert {value.dtype for value in double.state_dict().values()} == {torch.float64}


def test_learned_positions_of_a_preset_come_to_another_grid(tmp_path):
    net = create_model("vit3d_tiny", 16, 8, depth=1)
    save_backbone(net, tmp_path / "w.safetensors")
    other = create_model("vit3d_tiny", 32, 8, depth=1, pretrained=tmp_path / "w.safetensors")
    net.set_input_size(32)
    assert torch.equal(other.pos_embed, net.pos_embed)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_siglip_224", "vit_small_patch16_dinov3", "vit_base_patch16_clip_224"]
)
def test_one_gray_channel_is_the_mean_of_three(name):
    rgb, gray = timm_normalisation(name, 3), timm_normalisation(name)
    known = timm.get_pretrained_cfg(name)
    assert (rgb.mean, rgb.std) == (known.mean, known.std)
    x = torch.rand(2, 1, 4, 4, 2, dtype=torch.float64)
    as_rgb = (x - torch.tensor(rgb.mean).view(3, 1, 1, 1)) / torch.tensor(rgb.std).view(3, 1, 1, 1)
    torch.testing.assert_close((x - gray.mean[0]) / gray.std[0], as_rgb.mean(1, keepdim=True), rtol=0, atol=1e-6)


@torch.no_grad()
def test_where_all_channels_have_one_mean_and_std_gray_is_exactly_gray_as_rgb():
    name = "vit_base_patch16_siglip_224"
    model, mean, std = flat(name), *timm_normalisation(name)
    gray, rgb = (from_timm2d(model, *sizes(model), in_chans=n).network for n in (1, 3))
    x = torch.rand(2, 1, *gray.patch_embed.img_size, dtype=torch.float64)
    three = timm_normalisation(name, 3)
    as_rgb = torch.cat([(x - m) / s for m, s in zip(three.mean, three.std)], 1)
    torch.testing.assert_close(gray((x - mean[0]) / std[0]), rgb(as_rgb), **EXACT)


def test_normalisation_of_other_channels_and_names():
    three, four = timm_normalisation("vit_tiny_patch16_224", 3), timm_normalisation("vit_tiny_patch16_224", 4)
    assert four.std == (*three.std, three.std[0])
    assert timm_normalisation("vit_small_patch16_dinov3.lvd1689m").mean == pytest.approx((0.449,), abs=0.01)
    with pytest.raises(UsageError, match="in_chans=0"):
        timm_normalisation("vit_tiny_patch16_224", 0)
    for name in ("vit_colossal", "vit_tiny_patch16_224.no_such_tag"):
        with pytest.raises(WeightsError, match=name):
            timm_normalisation(name)


@pytest.mark.slow
def test_2d_weights_come_out_of_any_wrapping():
    models = [timm.create_model("test_vit", pretrained=False, img_size=32).state_dict() for _ in range(2)]
    for number, state in enumerate(models):
        state["norm.bias"] = torch.full_like(state["norm.bias"], number)
    one, other = models
    inside = {f"module.{key}": value for key, value in other.items()}
    for checkpoint, take, number in (
        ({"model": one, "model_ema": other}, "teacher", 1), ({"model": one, "model_ema": other}, "student", 0),
        ({"state_dict": inside, "epoch": 3}, "teacher", 1), ({"teacher": other, "student": one}, "teacher", 1),
    ):  # fmt: skip
        net, report = create_timm2d("test_vit", (32, 32, 8), (16, 16, 4), pretrained=checkpoint, take=take)
        assert (net.norm.bias == number).all()
        left = {*checkpoint} - ({"state_dict"} if "state_dict" in checkpoint else set())
        taken = {("teacher", 1): {"model_ema", "teacher"}, ("student", 0): {"model"}}[take, number]
        assert {*report.unexpected} == left - taken
    with pytest.raises(WeightsError, match="take='net' fits 0"):
        create_timm2d("test_vit", (32, 32, 8), (16, 16, 4), pretrained={"model": one}, take="net")


def test_what_timm_cannot_read_is_no_raw_error():
    with pytest.raises(WeightsError, match="expected weights of a ViT"):
        create_timm2d("test_vit", (32, 32, 8), (16, 16, 4), pretrained={"other": {"weight": torch.ones(1)}})


@pytest.mark.parametrize("how", [{"kernel": "bogus"}, {"positions": "bogus"}, {"axis": 3}, {"num_heads": 7}], ids=str)
def test_words_are_checked_without_weights_as_well(how):
    with pytest.raises(UsageError, match=next(iter(how))):
        create_timm2d("test_vit", (32, 32, 8), (16, 16, 4), **how)


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/", "hf_hub:timm/"])
def test_names_on_the_hub_are_timms(prefix):
    net = create_model(f"{prefix}test_vit", (32, 32, 8), (16, 16, 4), pretrained=None)
    assert net.embed_dim == 64
