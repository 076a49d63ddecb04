"""timm's Eva models in 3D (DINOv3, EVA-02, Perception Encoder, rope ViTs): the same logits, in float64."""

import math
from functools import partial

import pytest
import timm
import torch
from timm.layers import AttentionRope, LayerNorm
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers import RotaryPositions3D
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights.convert.timm2d import KERNEL, create_timm2d, from_timm2d
from monai_vit3d.weights.convert.timm2d_options import refuse_other_layers, timm_options
from monai_vit3d.weights.convert.timm_eva import under_block_names
from monai_vit3d.weights.create import create_model
from tests.weights.convert.test_timm2d import EXACT, HEADS, flat, image, sizes, stack

# timm's name, patch, options; each has something that the ones before have not
FAMILIES = {
    "DINOv3": ("vit_small_patch16_dinov3", 16, {}),
    "DINOv3 qkv bias": ("vit_small_patch16_dinov3_qkvb", 16, {}),
    "DINOv3 plus, SwiGLU": ("vit_small_plus_patch16_dinov3", 16, {}),
    "DINOv3 7B": ("vit_7b_patch16_dinov3", 16, {}),
    "LingBot": ("vit_small_patch16_lingbot", 16, {}),
    "LingBot giant": ("vit_giant_patch16_lingbot", 16, {}),
    "Sapiens2, LayerScale of attention": ("vit_base_patch16_sapiens2", 16, {"num_kv_heads": 2}),
    "EVA": ("eva_giant_patch14_224", 14, {}),
    "EVA CLIP": ("eva_giant_patch14_clip_224", 14, {}),
    "EVA-02, positions too": ("eva02_tiny_patch14_224", 14, {}),
    "EVA-02 base, three projections": ("eva02_base_patch14_448", 14, {}),
    "EVA-02 CLIP, inner norm": ("eva02_base_patch16_clip_224", 16, {}),
    "EVA-02 CLIP enormous, norm after": ("eva02_enormous_patch14_clip_224", 14, {}),
    "SBB rope": ("vit_medium_patch16_rope_reg1_gap_256", 16, {}),
    "SBB rope, no bias": ("vit_mediumd_patch16_rope_reg1_gap_256", 16, {}),
    "PE core, a pooling of all tokens": ("vit_pe_core_base_patch16_224", 16, {"attn_pool_num_heads": 2}),
    "PE lang, columns first, offset": ("vit_pe_lang_large_patch14_448", 14, {}),
    "PE spatial": ("vit_pe_spatial_tiny_patch16_512", 16, {}),
    "PE spatial giant, no class token": ("vit_pe_spatial_gigantic_patch14_448", 14, {}),
    "RoPE-ViT": ("vit_small_patch16_rope_224", 16, {}),
    "RoPE-ViT, positions too": ("vit_small_patch16_rope_ape_224", 16, {}),
    "columns first, normed queries": ("vit_small_patch16_rope_224", 16, {"qk_norm": True}),
    "three projections, each with bias": ("vit_small_patch16_rope_224", 16, {"qkv_fused": False}),
}


def with_float64_angles(model):
    """Timm's angles are float32; the same by its formulas, row by row and column by column, in float64."""
    rope = model.rope
    if rope is None:
        return model
    pairs, grid = rope.dim // 4, model.patch_embed.grid_size
    rows = []
    for place in ((i, j) for i in range(grid[0]) for j in range(grid[1])):
        if isinstance(rope, RotaryEmbeddingDinoV3):
            at = [2 * math.pi * (2 * (p + 0.5) / n - 1) for p, n in zip(place, grid)]
        else:
            at = [(p + rope.grid_offset) / n * r for p, n, r in zip(place, grid, rope.ref_feat_shape or grid)]
        at = at[::-1] if rope.grid_indexing == "xy" else at
        rows.append([p / rope.temperature ** (k / pairs) for p in at for k in range(pairs)])
    angles = torch.tensor(rows, dtype=torch.float64)
    angles = torch.cat([angles, angles], 1) if rope.rotate_half else angles.repeat_interleave(2, 1)
    table = torch.cat([angles.sin(), angles.cos()], 1)
    torch.testing.assert_close(rope.get_embed(shape=grid).double(), table, rtol=0, atol=1e-5)
    rope.get_embed = lambda shape=None, dtype=None: table
    return model


def eva(name, patch=16, **options):
    return with_float64_angles(flat(name, patch, **options))


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request):
    name, patch, options = FAMILIES[request.param]
    return eva(name, patch, **options)


@torch.no_grad()
def test_it_is_built_again_from_its_own_files(family, tmp_path):
    net = from_timm2d(family, *sizes(family, tokens=2)).network
    net.save_pretrained(tmp_path)
    x = stack(image(family), tokens=2)
    assert torch.equal(VisionTransformer3D.from_pretrained(tmp_path)(x), net(x))


@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.no_grad()
def test_one_token_along_the_slices_gives_the_2d_logits(family, axis):
    net, report = from_timm2d(family, *sizes(family, axis), axis=axis)
    x = image(family)
    want = family(x)
    torch.testing.assert_close(net(stack(x, axis)), want, **EXACT)
    assert want.std() > 1e-3
    assert set(report.loaded) | set(report.converted) == set(net.state_dict())
    assert (report.missing, report.unexpected) == ((), ())
    if family.rope is not None:  # and the angles matter
        net.rope = RotaryPositions3D(net.rope.head_dim, "patch", rotate_half=net.rope.rotate_half)
        assert not torch.allclose(net(stack(x, axis)), want, rtol=0, atol=1e-6)


@torch.no_grad()
def test_more_tokens_give_them_too_but_for_the_prefix_tokens_share_of_the_attention(family):
    k, prefix = 3, family.num_prefix_tokens
    net = from_timm2d(family, *sizes(family, tokens=k)).network
    x = image(family)
    mask = torch.zeros(1, 1, 1, prefix + net.num_patches, dtype=torch.float64)
    mask[..., :prefix] = math.log(k)
    features = net.forward_features(stack(x, tokens=k), mask)
    if net.pool_include_prefix:  # the pooling attends to prefix tokens, too, and takes no mask
        torch.testing.assert_close(features[:, prefix::k], family.forward_features(x)[:, prefix:], **EXACT)
        return
    torch.testing.assert_close(net.forward_head(features), family(x), **EXACT)


@torch.no_grad()
def test_gray_gives_what_gray_as_rgb_gives(family):
    gray, rgb = (from_timm2d(family, *sizes(family, tokens=2), in_chans=n).network for n in (1, 3))
    x = torch.randn(2, 1, *gray.patch_embed.img_size, dtype=torch.float64)
    torch.testing.assert_close(gray(x), rgb(x.expand(-1, 3, -1, -1, -1)), **EXACT)


def tables(name, size, grid):
    """Ours for the name, on a grid of another size than the model had, and timm's there."""
    options = timm_options(flat(name))
    ours = options["rope"](12)(torch.zeros(1, 3, 8, 8, 1, dtype=torch.float64), (*grid, 1), (16, 16, 1))[0, 0]
    model = eva(name, img_size=size)
    theirs = model.rope.get_embed()
    if model.rope.grid_indexing == "xy":
        theirs = theirs.unflatten(1, (2, 2, -1)).flip(2).flatten(1)
    return ours, theirs


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_base_patch16_clip_224",
                                  "vit_pe_spatial_tiny_patch16_512", "vit_small_patch16_rope_224"])  # fmt: skip
def test_on_other_sizes_the_angles_are_timms_for_those(name):
    ours, theirs = tables(name, (80, 64), (5, 4))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_every_eva_of_timm_is_hosted_or_refused_with_the_reason():
    refused, hosted = {}, []
    for name in timm.list_models(module="eva"):
        options = {} if "sapiens2" in name else {"depth": 1}  # that one has heads by block
        model = timm.create_model(name, pretrained=False, device="meta", **options)
        try:
            options = timm_options(model)
        except WeightsError as error:
            refused[name] = str(error)
            continue
        grid, patch = model.patch_embed.grid_size, model.patch_embed.patch_size
        size = (grid[0] * patch[0], grid[1] * patch[1], 2)
        net = VisionTransformer3D(size, (*patch, 2), device="meta", **options)
        state, _ = under_block_names(model.state_dict(), {}, model)
        pool = [key for key in net.state_dict() if key.startswith("attn_pool.")]
        shapes = {key: value.shape for key, value in net.state_dict().items() if key not in (KERNEL, *pool)}
        assert shapes == {k: v.shape for k, v in state.items() if k != KERNEL and not k.startswith("attn_pool.")}, name
        if pool:  # its heads are others than the blocks': hosted with another pooling
            with pytest.raises(WeightsError, match=r"attn_pool is .*another global_pool"):
                refuse_other_layers(model, net)
            net = VisionTransformer3D(size, (*patch, 2), device="meta", **{**options, "global_pool": "avg"})
        refuse_other_layers(model, net)
        hosted.append(name)
    assert len(hosted) >= 50
    assert all("mixed" in name or "sapiens2" in name for name in refused)
    assert all("num_kv_heads" in why for name, why in refused.items() if "sapiens2" in name)
    assert all("RotaryEmbeddingMixed" in why for name, why in refused.items() if "mixed" in name)


@pytest.mark.parametrize(("name", "change", "match"), [
    ("vit_small_patch16_dinov3", lambda m: setattr(m.rope, "normalize_coords", "max"), "normalize_coords=max"),
    ("vit_small_patch16_dinov3", lambda m: setattr(m.rope, "grid_offset", 0.5), "grid_offset=0.5"),
    ("vit_small_patch16_dinov3", lambda m: setattr(m.rope, "min_period", 2.0), "min_period=2.0"),
    ("vit_small_patch16_dinov3", lambda m: setattr(m.rope, "grid_indexing", "xy"), "rotate_half=True"),
    ("vit_small_patch16_rope_224", lambda m: setattr(m.rope, "grid_offset", 1.0), "grid_offset=1.0"),
    ("vit_pe_spatial_tiny_patch16_512", lambda m: setattr(m.rope, "grid_offset", 0.5), "grid_offset=0.5"),
    ("vit_small_patch16_rope_224", lambda m: setattr(m.rope, "grid_type", "pixel"), "grid_type=pixel"),
    ("vit_small_patch16_rope_224", lambda m: setattr(m.rope, "in_pixels", True), "in_pixels=True"),
    ("vit_small_patch16_rope_224", lambda m: setattr(m.blocks[1].attn, "gate", m.head), "gated"),
    ("vit_small_patch16_rope_mixed_224", lambda m: None, "RotaryEmbeddingMixed"),
])  # fmt: skip
def test_what_cannot_be_hosted_is_refused_with_the_reason(name, change, match):
    model = flat(name)
    change(model)
    with pytest.raises(WeightsError, match=match):
        timm_options(model)


def test_rotary_positions_after_which_norms_come_are_refused():
    with pytest.raises(WeightsError, match="blocks that norm their output"):
        timm_options(flat("eva02_enormous_patch14_clip_224", 14, use_rot_pos_emb=True))


@pytest.mark.parametrize(
    "options", [{"rope": "patch"}, {"rope": None}, {"act_layer": "relu"}, {"norm_layer": partial(LayerNorm, eps=1e-3)}]
)
def test_other_layers_are_refused_where_no_shape_shows_it(options):
    model = flat("vit_small_patch16_dinov3")
    with pytest.raises(WeightsError, match="layers differ"):
        from_timm2d(model, *sizes(model), **options)
    assert from_timm2d(model, *sizes(model), strict=False, **options).report.unexpected == ()


def as_published_dinov3(model):
    """Meta's own layout of DINOv3."""
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("attn.q_bias"):
            other = model.state_dict()[key.replace("q_bias", "v_bias")]
            state[key.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.randn_like(value), other])
            state[key.replace("q_bias", "qkv.bias_mask")] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(24)
        elif not key.endswith("v_bias"):
            key = key.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma")
            state[key.replace("gamma_2", "ls2.gamma")] = value
    return {**state, "mask_token": torch.zeros(1, 24), "rope_embed.periods": torch.ones(4)}


@torch.no_grad()
def test_dinov3_as_published_is_renamed_and_each_key_accounted_for(capsys):
    model = eva("vit_small_patch16_dinov3_qkvb")
    net, report = from_timm2d(model, *sizes(model), state=as_published_dinov3(model))
    x = image(model)
    torch.testing.assert_close(net(stack(x)), model(x), **EXACT)
    masks = {f"blocks.{i}.attn.qkv.bias_mask" for i in (0, 1)}
    assert set(report.unexpected) == {"mask_token", "rope_embed.periods"} | masks
    assert report.converted["reg_token"] == "from storage_tokens"
    assert report.converted["blocks.0.ls1.gamma"] == "from blocks.0.ls1.gamma"
    assert report.converted["blocks.1.attn.qkv.bias"].count("blocks.1.attn.qkv.bias and zeros") == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", ["trained", "keys"])
def test_biases_for_which_the_named_model_has_no_place_are_refused(change):
    state = as_published_dinov3(eva("vit_small_patch16_dinov3_qkvb"))
    model, match = eva("vit_small_patch16_dinov3"), "no place for blocks.0.attn.qkv.bias.*_qkvb"
    if change == "keys":
        model, match = eva("vit_small_patch16_dinov3_qkvb"), "blocks.0.attn.qkv.bias has values for the keys"
        state |= {key: torch.ones_like(value) for key, value in state.items() if key.endswith("bias_mask")}
    with pytest.raises(WeightsError, match=match):
        from_timm2d(model, *sizes(model), state=state)
    zeros = {key: torch.zeros_like(value) for key, value in state.items() if key.endswith("qkv.bias")}
    assert {*zeros} <= {
        *from_timm2d(eva("vit_small_patch16_dinov3"), *sizes(model), state=state | zeros).report.unexpected
    }


def test_by_name_and_file_as_the_issue_has_it(monkeypatch, tmp_path):
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: make(name, **{**HEADS, **options}))
    state = make("vit_small_patch16_dinov3", **HEADS).state_dict()
    torch.save(state, tmp_path / "dinov3.pt")
    size, patch = (96, 96, 48), (16, 16, 8)
    net = create_model("vit_small_patch16_dinov3", size, patch, in_chans=1, pretrained=tmp_path / "dinov3.pt")
    assert net.rope.pairs == (3, 3, 0)
    assert torch.equal(net.blocks[1].ls2.gamma, state["blocks.1.gamma_2"])
    assert all(isinstance(block.attn, AttentionRope) for block in net.blocks)
    assert net(torch.zeros(1, 1, *size)).shape == (1, 5)
    net = create_timm2d("vit_small_patch16_dinov3", (48, 96, 96), (8, 16, 16), axis=0).network
    assert net.rope.pairs == (0, 3, 3)


@pytest.mark.slow
@torch.no_grad()
def test_reference_angles_in_every_form_that_users_run():
    model = eva("vit_pe_spatial_tiny_patch16_512")
    net = from_timm2d(model, *sizes(model, tokens=2), dynamic_img_size=True).network
    assert "reference=(32.0, 32.0, 1.0), offset=1" in str(net.rope)
    x = stack(image(model), tokens=2)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x), rtol=0, atol=1e-12)
    fixed = from_timm2d(model, *sizes(model, tokens=2)).network
    torch.testing.assert_close(torch.fx.symbolic_trace(fixed)(x), net(x), rtol=0, atol=1e-12)
    exported = torch.export.export(net, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), net(x), rtol=0, atol=1e-12)
