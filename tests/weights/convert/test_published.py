"""Published 3D ViTs: the tokens of independent forward passes, of transformers' models, and of the sources' own code.

The last are in files that MONAI_DATA_DIRECTORY/layouts has where a developer has them; a test that needs them skips.
"""

import os
from pathlib import Path

import pytest
import torch

from monai_vit3d import VisionTransformer3D
from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks import TokenSegmenter
from monai_vit3d.weights import backbone_from, describe_weights, identify, to_published
from monai_vit3d.weights.convert.videomae import flat_sincos
from tests.weights.convert import published_forwards as forwards

RANDOM = torch.Generator().manual_seed(0)


def noise(*shape):
    return torch.randn(shape, generator=RANDOM, dtype=torch.float64)


def layers(shapes, width=None):
    """Weights of those shapes; a number makes a norm, two and more a linear layer or convolution with a bias."""
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = 1 + 0.2 * noise(*shape) if len(shape) == 1 else 0.3 * noise(*shape)
        state[f"{name}.bias"] = 0.2 * noise(shape[0])
    return state


def in_blocks(start, depth, make):
    return {f"{start}{i}.{key}": value for i in range(depth) for key, value in make().items()}


def primus_state(width=48, depth=2, patch=(4, 4, 4), chans=1, registers=0, positions=0, stem=None):
    hidden = int(width * 8 / 3)

    def block():
        shapes = {f"attn.{name}": (width, width) for name in ("q_proj", "k_proj", "v_proj", "proj")}
        shapes |= {"norm1": (width,), "norm2": (width,), "attn.norm": (width,), "mlp.norm": (hidden,)}
        shapes |= {"mlp.fc1_g": (hidden, width), "mlp.fc1_x": (hidden, width), "mlp.fc2": (width, hidden)}
        state = layers(shapes) | {"gamma_1": noise(width), "gamma_2": noise(width)}
        del state["attn.k_proj.bias"]
        return state

    state = {
        "mask_token": noise(1, 1, width),
        **in_blocks("eva.blocks.", depth, block),
        **layers({"eva.norm": (width,)}),
    }
    state |= layers({"up_projection.decode.0.0": (width, 8, 2, 2, 2)})
    state |= {"register_tokens": noise(1, registers, width)} if registers else {}
    state |= {"eva.pos_embed": noise(1, registers + positions, width)} if positions else {}
    return state | (layers({"down_projection.proj": (width, chans, *patch)}) if stem is None else stem)


def stem_state(widths, width=48, chans=1, skips=False):
    state, at, before = {}, "down_projection.", chans
    for i, now in enumerate(widths):
        stage = f"{at}stem.blocks.0" if i == 0 else f"{at}stages.{i - 1}.blocks.0"
        names = {"conv1.conv": (now, before, 3, 3, 3), "conv1.norm": (now,), "conv2.conv": (now, now, 3, 3, 3)}
        names |= {"conv2.norm": (now,)}
        if before != now:
            names |= {f"skip.{int(i > 0)}.conv": (now, before, 1, 1, 1), f"skip.{int(i > 0)}.norm": (now,)}
        made = layers({f"{stage}.{name}": shape for name, shape in names.items()})
        state |= {key: v for key, v in made.items() if not key.endswith("conv.bias") or (i == 0 and "skip" not in key)}
        before = now
    copies = {}
    for key, value in state.items():
        kind = "conv" if ".conv.w" in key or ".conv.b" in key else "norm"
        copies[key.replace(f".{kind}.", f".all_modules.{int(kind == 'norm')}.")] = value
    state |= copies | layers({f"{at}final_proj": (width, widths[-1], 1, 1, 1)})
    for i, now in enumerate(widths[:-1] if skips else ()):
        state |= layers({f"{at}proj_to_tokens.{i}": (width, now, *[2 ** (len(widths) - 1 - i)] * 3)})
        state[f"{at}scale_proj_to_tokens.{i}"] = noise()
    return state


def timms_state(width, depth, hidden, kernel, gated=False, heads=0, extra=()):
    def block():
        shapes = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        if gated:
            shapes |= {"mlp.fc2": (hidden, width), "mlp.fc3": (width, hidden)}
        shapes |= {"attn.proj_attn_gate": (heads, width)} if heads else {}
        return layers(shapes) | {name: noise(width) for name in extra}

    return {**in_blocks("blocks.", depth, block), **layers({"norm": (width,), "patch_embed.proj": (width, *kernel)})}


# each: the state dict, the input, the tokens of the independent forward pass, options that no tensor shows


def primus_v1():
    state, x = primus_state(positions=2 * 3 * 4), noise(1, 1, 8, 12, 16)
    return state, x, forwards.primus(state, x, 4, (2, 3, 4)), {"num_heads": 4, "img_size": (8, 12, 16)}


def primus_registers():
    state, x = primus_state(width=72, registers=3, positions=8, chans=2), noise(1, 2, 8, 8, 8)
    return state, x, forwards.primus(state, x, 2, (2, 2, 2)), {"num_heads": 2}


def primus_on_another_grid():
    state, x = primus_state(), noise(1, 1, 8, 12, 16)
    options = {"num_heads": 4, "img_size": (8, 12, 16), "grid": (6, 6, 6)}
    return state, x, forwards.primus(state, x, 4, (6, 6, 6)), options


def primus_v2():
    state = primus_state(stem=stem_state((32, 32, 64, 128)), positions=8)
    x = noise(1, 1, 16, 16, 16)
    return state, x, forwards.primus(state, x, 4, (2, 2, 2), 2), {"num_heads": 4}


def primus_v3_of_other_widths():
    state = primus_state(stem=stem_state((8, 12, 16), chans=2, skips=True), positions=2 * 2 * 3)
    x = noise(1, 2, 8, 8, 12)
    return state, x, forwards.primus(state, x, 4, (2, 2, 3), 3), {"num_heads": 4, "img_size": (8, 8, 12)}


def vjepa2():
    state, x = timms_state(128, 2, 256, (3, 2, 8, 8)), noise(1, 3, 4, 24, 16)
    return state, x, forwards.vjepa2(state, x, 2), {"num_heads": 2, "img_size": (4, 24, 16)}


def vjepa2_gated_mlp():
    state, x = timms_state(48, 2, 96, (3, 2, 8, 8), gated=True), noise(1, 3, 4, 24, 16)
    return state, x, forwards.vjepa2(state, x, 2), {"num_heads": 2, "img_size": (4, 24, 16)}


def neuro_jepa():
    state, x = timms_state(64, 2, 96, (1, 4, 4, 4), gated=True, heads=4), noise(1, 1, 8, 12, 16)
    return state, x, forwards.vjepa2(state, x, 4, (2, 0, 1)), {"img_size": (8, 12, 16)}


def spectre_state(width=48, kernel=(1, 4, 8, 2), pairs=2, base=1000.0):
    state = timms_state(width, 2, 2 * width, kernel, extra=("ls1.gamma", "ls2.gamma"))
    for i in (0, 1):
        for kind in ("weight", "bias"):
            whole = state.pop(f"blocks.{i}.attn.qkv.{kind}")
            state |= {f"blocks.{i}.attn.q.{kind}": whole[:width], f"blocks.{i}.attn.kv.{kind}": whole[width:]}
    return state | {"cls_token": noise(1, 1, width), "rope.periods": base ** (torch.arange(pairs) / pairs)}


def spectre():
    state, x = spectre_state(), noise(1, 1, 8, 24, 8)
    return state, x, forwards.box_vit(state, x, 4), {"img_size": (8, 24, 8)}


def combiner_state(width=48, of_crop=96, pairs=2):
    """SPECTRE's second network, over the class tokens and means of crops."""
    state = spectre_state(width, (of_crop, 1, 1, 1), pairs, 100.0)
    state |= {f"patch_proj.{kind}": state.pop(f"patch_embed.proj.{kind}") for kind in ("weight", "bias")}
    return {**state, "patch_proj.weight": state["patch_proj.weight"].flatten(1)}


def spectre_combiner():
    state, x = combiner_state(), noise(1, 96, 2, 1, 3)
    options = {"img_size": (2, 1, 3), "norm_eps": 1e-5}
    return state, x, forwards.box_vit(state, x, 4, eps=1e-5), options


def dinov3_3d():
    state = timms_state(72, 2, 96, (1, 4, 4, 4), extra=("ls1.gamma", "ls2.gamma"))
    state = {key.replace("patch_embed.", "patch_embed_3D."): value for key, value in state.items()}
    for i in (0, 1):
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(72)
        for theirs, shape in (("w1", (96, 72)), ("w2", (96, 72)), ("w3", (72, 96))):
            state |= layers({f"blocks.{i}.mlp.{theirs}": shape})
        for key in [key for key in state if key.startswith(f"blocks.{i}.mlp.fc")]:
            del state[key]
    # a ladder that no base gives, as bfloat16 has it
    state |= {"cls_token": noise(1, 1, 72), "storage_tokens": noise(1, 3, 72), "mask_token": noise(1, 72)}
    state |= {"rope_embed_3D.periods": (100.0 ** (torch.arange(6) / 9)).bfloat16(), "rope_embed_2D.periods": noise(9)}
    state |= layers({"patch_embed_2D.proj": (72, 1, 4, 4)})
    x = noise(1, 1, 8, 12, 16)
    return state, x, forwards.box_vit(state, x, 2), {"img_size": (8, 12, 16)}


CASES = [
    *(primus_v1, primus_registers, primus_on_another_grid, primus_v2, primus_v3_of_other_widths),
    *(vjepa2, vjepa2_gated_mlp, neuro_jepa, spectre, spectre_combiner, dinov3_3d),
]


def named_in(report, key):
    texts = (*report.loaded, *report.unexpected, *report.converted, *report.converted.values())
    return any(key in text.replace(",", "").split() for text in texts)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_tokens_are_those_of_the_published_forward_and_each_key_is_accounted_for(case):
    state, x, tokens, options = case()
    net, report = backbone_from({"network_weights": {f"module.{key}": v for key, v in state.items()}}, **options)
    torch.testing.assert_close(net.forward_features(x), tokens, rtol=0, atol=1e-12 * tokens.abs().max().item())
    assert [key for key in state if not named_in(report, key)] == []
    assert report.missing == ()


@pytest.mark.parametrize(
    "case",
    [primus_v1, primus_registers, primus_v3_of_other_widths, vjepa2_gated_mlp, neuro_jepa, spectre, spectre_combiner],
    ids=lambda case: case.__name__,
)
def test_the_way_back_gives_the_same_tensors(case):
    state, _, _, options = case()
    source = identify(state)
    back = to_published(backbone_from(source, **options).network, source.family)
    assert {key: value.shape for key, value in state.items() if key not in back} == {
        key: state[key].shape for key in source.left_out if "all_modules" not in key and "periods" not in key
    }
    for key, value in back.items():
        torch.testing.assert_close(value, state[key].to(value.dtype), rtol=1e-6, atol=0)


@torch.no_grad()
def test_of_two_networks_of_spectre_in_a_file_the_first_is_taken_unless_the_other_is_meant():
    (one, _, _, _), (other, x, tokens, options) = spectre(), spectre_combiner()
    both = {f"model.backbone.{key}": value for key, value in one.items()}
    both |= {f"model.feature_combiner.{key}": value for key, value in other.items()}
    assert identify(both).family == "spectre"
    for how in ({"take": "feature_combiner"}, {"family": "spectre_combiner"}):
        net = backbone_from(identify(both, **how), **options).network
        torch.testing.assert_close(net.forward_features(x), tokens, rtol=0, atol=1e-12 * tokens.abs().max().item())


def test_no_way_back_for_what_the_layout_has_no_place_for():
    state, _, _, options = primus_v1()
    net = backbone_from(state, **options).network
    with torch.no_grad():
        net.blocks[0].attn.qkv.bias[60] = 1.0  # of the keys
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.qkv\.bias: it has values .*a bias of the keys"):
        to_published(net, "primus")
    plain = VisionTransformer3D(8, 4, embed_dim=48, depth=1, num_heads=4, class_token=False, global_pool="")
    with pytest.raises(WeightsError, match="primus"):
        to_published(plain, "primus")
    for network, family in ((plain, "nidl"), (torch.nn.Identity(), "primus")):
        with pytest.raises(UsageError, match="one of 'primus', 'spectre'"):
            to_published(network, family)


def test_parts_of_a_stem_that_contradict_each_other_are_refused():
    state = primus_state(stem=stem_state((8, 12, 16)), positions=8)
    key = "down_projection.stages.0.blocks.0.conv2.all_modules.0.weight"
    with pytest.raises(WeightsError, match=f"{key} is no copy"):
        identify({**state, key: state[key] + 1})


@torch.no_grad()
def test_a_stem_takes_other_channels_and_keeps_its_patch():
    state = primus_state(stem=stem_state((8, 12, 16)), positions=8)
    x = noise(1, 1, 8, 8, 8)
    gray, two = (backbone_from(state, num_heads=4, in_chans=n).network for n in (1, 2))
    torch.testing.assert_close(two(x.expand(-1, 2, -1, -1, -1)), gray(x), rtol=0, atol=1e-9)
    with pytest.raises(UsageError, match=r"patch_size=\(8, 8, 8\); its stem of convolutions keeps \(4, 4, 4\)"):
        backbone_from(state, num_heads=4, patch_size=8)


# transformers' own models


def transformers_models():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    image = {**small, "image_size": 32, "patch_size": 8}
    video = {**small, "image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
    jepa = {"hidden_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2, "crop_size": 32, "patch_size": 8}
    jepa |= {"frames_per_clip": 4, "pred_hidden_size": 48, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    t = transformers
    return {
        "ViT": (t.ViTModel, t.ViTConfig(**image), {"add_pooling_layer": False}),
        "Dinov2": (t.Dinov2Model, t.Dinov2Config(**image), {}),
        "Dinov2 SwiGLU": (t.Dinov2Model, t.Dinov2Config(**image, use_swiglu_ffn=True), {}),
        "Dinov2 registers": (t.Dinov2WithRegistersModel, t.Dinov2WithRegistersConfig(**image), {}),
        "VideoMAE": (t.VideoMAEModel, t.VideoMAEConfig(**video, use_mean_pooling=False), {}),
        "V-JEPA 2": (t.VJEPA2Model, t.VJEPA2Config(**jepa), {}),
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT", "Dinov2", "Dinov2 SwiGLU", "Dinov2 registers", "VideoMAE", "V-JEPA 2"])
def test_transformers_models_give_their_own_tokens(name):
    kind, config, more = transformers_models()[name]
    torch.manual_seed(0)
    model = kind(config, **more).eval()
    for value in model.parameters():
        value.add_(0.1 * torch.randn_like(value))
    options = {"num_heads": int(config.num_attention_heads)}
    if "V" in name and name != "ViT":
        x = torch.randn(1, 3, 4, 32, 32)
        inputs, options = x.transpose(1, 2), {**options, "img_size": (4, 32, 32)}
        tokens = model(inputs, skip_predictor=True) if name == "V-JEPA 2" else model(inputs)
    else:
        x = torch.randn(1, 3, 32, 32)
        options |= {"img_size": (32, 32, 3), "patch_size": (8, 8, 3)}
        tokens, x = model(x), x[..., None].expand(-1, -1, -1, -1, 3)
    net, report = backbone_from({f"vit.{key}": value for key, value in model.state_dict().items()}, **options)
    torch.testing.assert_close(net.forward_features(x), tokens.last_hidden_state, rtol=0, atol=2e-5)
    assert report.missing == ()


def test_a_2d_model_under_transformers_names_inflates_under_timms_name():
    kind, config, more = transformers_models()["Dinov2"]
    state = kind(config, **more).state_dict()
    options = {"num_heads": 4, "img_size": (32, 32, 8), "patch_size": 8}
    one = backbone_from(state, **options, kernel="center", positions="factored", axis=2).network
    assert one.patch_embed.proj.weight[..., 4].any()
    assert not one.patch_embed.proj.weight[..., 3].any()
    with pytest.raises(WeightsError, match=r"no tensor shows .*img_size, patch_size.*num_heads"):
        backbone_from(state)


# what is refused, each by its right name


@pytest.mark.parametrize(("key", "match"), [
    ("blocks.1.mlp.experts.0.fc1.weight", "mixture of experts"),
    ("image_encoder.blocks.0.attn.rel_pos_d", "SAM-Med3D"),
    ("visual_transformer.enc_spatial_transformer.layers.0.1.to_q.weight", "CT-CLIP's CTViT"),
    ("swinViT.layers1.0.blocks.0.attn.relative_position_bias_table", "Swin"),
])  # fmt: skip
def test_networks_that_cannot_be_hosted_are_refused_by_name(key, match):
    start = "image_encoder." if key.startswith("image") else ""
    state = {f"{start}{name}": value for name, value in timms_state(48, 1, 96, (1, 4, 4, 4)).items()}
    beside = {key: torch.ones(2), "optimizer.state": torch.ones(2)}
    with pytest.raises(WeightsError, match=rf"^w\.pt: .*{match}.* Use its own package"):
        identify({"model_state_dict": {**(state if "mlp" in key or start else {}), **beside}}, "w.pt")
    tower = {f"ct_tower.{name}": value for name, value in timms_state(48, 1, 96, (1, 4, 4, 4)).items()}
    with pytest.raises(WeightsError, match=f"{match}.* pass take='ct_tower'"):
        identify({"swin": {key: torch.ones(2)}, "model": tower}, "w.pt")
    assert identify({"swin": {key: torch.ones(2)}, "model": tower}, take="ct_tower").family == "nidl"


def test_extra_tensors_of_the_encoder_are_never_dropped():
    for case in (primus_v1, vjepa2, spectre, dinov3_3d):
        state, _, _, options = case()
        block = next(key for key in state if "blocks.0." in key).split("blocks.0.")[0]
        with pytest.raises(WeightsError, match="extra"):
            backbone_from({**state, f"{block}blocks.0.attn.extra.bias": torch.ones(2)}, **options)
    state, _, _, options = primus_v1()
    for key in ("down_projection.final_proj.weight", "eva.blocks.0.attn.qkv.weight"):
        with pytest.raises(WeightsError, match=key.replace("eva.", "").rsplit(".", 1)[0]):
            backbone_from({**state, key: torch.ones(2)}, **options)
    with pytest.raises(WeightsError, match="k_proj"):
        backbone_from({**state, "eva.blocks.0.attn.k_proj.bias": torch.ones(48)}, **options)


# small facts


def test_videomaes_table_is_the_usual_one_of_the_flat_index():
    table = flat_sincos((2, 3, 4), 8)[0]
    for place in (0, 5, 23):
        for channel in range(8):
            angle = torch.tensor(place / 10000 ** (2 * (channel // 2) / 8), dtype=torch.float64)
            assert abs(table[place, channel] - (angle.cos() if channel % 2 else angle.sin())) < 1e-6


def test_our_own_whole_networks_are_described(tmp_path):
    backbone = VisionTransformer3D(8, 4, embed_dim=48, depth=2, num_heads=4, embed_layer="primus_v2", global_pool="avg")
    torch.save(TokenSegmenter(backbone, "light", num_classes=2).state_dict(), tmp_path / "model.pt")
    described = describe_weights(tmp_path / "model.pt")
    assert (described["family"], described["missing"]) == ("monai_vit3d", [])


# the sources' own tokens

OWN = {
    "primus_v1": {"num_heads": 4, "img_size": (16, 24, 32)},
    "primus_v1_registers": {"num_heads": 4, "img_size": (16, 24, 32)},
    "primus_v2": {"num_heads": 4, "img_size": (16, 24, 32)},
    "colipri": {"num_heads": 4, "img_size": (16, 16, 24)},
    "spectre": {"img_size": (32, 48, 16)},
    "flexict3d": {"img_size": (16, 24, 32)},
    "3dino": {"num_heads": 4},
    "neurojepa": {"img_size": (24, 36, 48)},
    "vjepa2": {"num_heads": 2, "img_size": (4, 48, 64)},
    "hf_vjepa2": {"num_heads": 2, "img_size": (4, 48, 48)},
    "m3dclip": {"num_heads": 4, "img_size": (8, 32, 48), "patch_size": (4, 16, 16)},
    "segvol": {"num_heads": 4, "img_size": (8, 32, 48), "patch_size": (4, 16, 16)},
    "hf_vit": {"num_heads": 4, "img_size": (64, 64, 1), "patch_size": (16, 16, 1)},
    "hf_dinov2": {"num_heads": 4, "img_size": (64, 64, 1), "patch_size": (16, 16, 1)},
    "hf_videomae": {"num_heads": 4, "img_size": (4, 48, 48)},
    "videomae2": {"num_heads": 4, "img_size": (4, 48, 48)},
}


@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_tokens_are_those_of_the_sources_own_code(name):
    folder = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "layouts"
    if not (folder / f"{name}.pt").is_file():
        pytest.skip("the layouts of published networks are not under MONAI_DATA_DIRECTORY")
    given = torch.load(folder / f"{name}.ref.pt", weights_only=True)
    x, tokens = given["x"], given["y"]
    x = x[..., None] if x.dim() == 4 else x.transpose(1, 2) if name in ("hf_videomae", "hf_vjepa2") else x
    net, report = backbone_from(folder / f"{name}.pt", **OWN[name])
    ours = net.forward_features(x)
    ours = net.forward_head(ours, pre_logits=True) if tokens.dim() == 2 else ours
    assert (ours - tokens).abs().max() <= 1e-5 * tokens.abs().max()
    assert report.missing == ()
    if name in ("primus_v1", "spectre", "3dino", "flexict3d"):
        back = to_published(net, identify(torch.load(folder / f"{name}.pt", weights_only=True)).family)
        again = backbone_from(back, **OWN[name]).network
        torch.testing.assert_close(again.forward_features(x), ours, rtol=0, atol=1e-5)
