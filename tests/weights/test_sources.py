"""Checkpoints are recognised in any wrapping; what is ambiguous, unexpected or not hosted is refused by name."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets import ViT
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers import ConvStem3D
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D, hub
from monai_vit3d.networks.checkpoints import read_with_metadata
from monai_vit3d.networks.layer_facts import unlike_layers
from monai_vit3d.weights import save_backbone, sources
from monai_vit3d.weights.convert.unwrap import WORDS
from monai_vit3d.weights.sources import Source, identify, read_source

WIDE = {"embed_dim": 64, "depth": 1, "num_heads": 1}


def vit(seed=0, **options):
    torch.manual_seed(seed)
    return VisionTransformer3D(8, 4, **{**WIDE, **options}).eval()


def monai_vit(seed=0, **options):
    torch.manual_seed(seed)
    net = ViT(1, 8, 4, hidden_size=64, mlp_dim=32, num_layers=1, num_heads=1, **options).eval()
    nn.init.normal_(net.norm.bias)
    return net


def backbone_from(source, **options):
    """Of WIDE, whose heads no tensor shows; our own files say theirs."""
    ours = getattr(source, "family", "") == "monai_vit3d" or str(source).endswith("safetensors")
    return sources.backbone_from(source, **{**({} if ours else {"num_heads": 1}), **options})


def under(state, step):
    if step.endswith("."):
        return {f"{step}{key}": value for key, value in state.items()}
    return {step: state}


def same(net, other):
    return all(torch.equal(value, other[key]) for key, value in net.state_dict().items())


# wrappings


@pytest.mark.slow
@given(st.lists(st.sampled_from([*WORDS, *(f"{word}." for word in WORDS)]), max_size=4), st.booleans())
def test_any_nesting_is_taken_off_and_said(steps, monai):
    # a prefix cannot lie outside an entry: the tensors' keys are those of the innermost dict
    steps = [step for step in steps if not step.endswith(".")] + [step for step in steps if step.endswith(".")]
    state = checkpoint = dict((monai_vit() if monai else vit()).state_dict())
    for step in reversed(steps):
        checkpoint = under(checkpoint, step)
        if not step.endswith("."):
            checkpoint |= {"optimizer": {"state": {0: torch.ones(1)}, "param_groups": []}, "epoch": 3}
    source = identify(checkpoint, take="teacher")
    assert source.wrapping == tuple(steps)
    assert source.family == ("monai_vit" if monai else "nidl")
    assert source.state.keys() | {*source.left_out} >= state.keys()
    entries = [step for step in steps if not step.endswith(".")]
    beside = [".".join([*entries[:i], name]) for i in range(len(entries)) for name in ("optimizer", "epoch")]
    assert {key for key in source.left_out if "cross_attn" not in key} == set(beside)
    assert same(backbone_from(source).network, backbone_from(state).network.state_dict())


@pytest.mark.parametrize(("names", "averaged"), [
    (("teacher", "student"), "teacher"), (("student.", "teacher."), "teacher."), (("model", "model_ema"), "model_ema"),
    (("state_dict", "state_dict_ema"), "state_dict_ema"), (("context_encoder.vit.", "target_encoder.vit."), "target"),
])  # fmt: skip
def test_of_a_teacher_and_a_student_the_teacher_is_taken_and_said(names, averaged):
    states = {name: dict(vit(seed).state_dict()) for seed, name in enumerate(names)}
    checkpoint = {key: value for name, state in states.items() for key, value in under(state, name).items()}
    teacher = next(name for name in names if name.startswith(averaged))
    student = next(name for name in names if name != teacher)
    for take, name, other in (("teacher", teacher, student), ("student", student, teacher)):
        source = identify(checkpoint, take=take)
        assert source.wrapping[0].rstrip(".") == name.split(".")[0]
        assert torch.equal(source.state["cls_token"], states[name]["cls_token"])
        assert {key.split(".")[0] for key in source.left_out} == {other.split(".")[0]}
        net, report = backbone_from(checkpoint, take=take)
        assert same(net, states[name])
        assert report.unexpected == source.left_out


def test_several_networks_are_refused_by_name():
    checkpoint = {"model": dict(vit().state_dict()), "network": dict(vit(1).state_dict())}
    for take in ("teacher", "student"):
        with pytest.raises(WeightsError, match=rf"^w\.pt: take='{take}' fits 2 .* 'model', 'network'; expected one"):
            identify(checkpoint, "w.pt", take=take)
    assert torch.equal(identify(checkpoint, take="network").state["cls_token"], checkpoint["network"]["cls_token"])
    with pytest.raises(WeightsError, match="take='student' fits 0 of the networks that it holds, under 'teacher'"):
        identify({"teacher": dict(vit().state_dict())}, take="student")
    with pytest.raises(WeightsError, match="take='net' fits 0"):
        identify(dict(vit().state_dict()), take="net")


@pytest.mark.parametrize("word", ["ema_model", "net_ema", "backbone_momentum", "momentum_encoder", "teacher_backbone"])
def test_an_average_is_known_by_its_word(word):
    one, other = dict(vit().state_dict()), dict(vit(1).state_dict())
    checkpoint = {**under(one, "backbone."), **under(other, f"{word}.")}
    assert torch.equal(identify(checkpoint).state["cls_token"], other["cls_token"])
    assert torch.equal(identify(checkpoint, take="student").state["cls_token"], one["cls_token"])


def test_an_average_beside_the_tensors():
    one, other = dict(vit().state_dict()), dict(vit(1).state_dict())
    source = identify({**one, "model_ema": other})
    assert torch.equal(source.state["cls_token"], other["cls_token"])
    assert {*source.left_out} == {*one}
    assert torch.equal(identify({**one, "model_ema": other}, take="student").state["cls_token"], one["cls_token"])


@pytest.mark.parametrize("stranger", ["key_encoder.", "key_encoder"])
def test_another_network_under_a_strange_word_is_refused(stranger):
    one, other = dict(vit().state_dict()), dict(vit(1).state_dict())
    checkpoint = (
        {"net": one, stranger: other} if "." not in stranger else {**under(one, "net."), **under(other, stranger)}
    )
    with pytest.raises(
        WeightsError, match=r"^w\.pt: it holds several .*'net\.?' and 'key_encoder\.'.*take='key_encoder'"
    ):
        identify(checkpoint, "w.pt")
    for take, state in (("net", one), ("key_encoder", other)):
        assert torch.equal(identify(checkpoint, take=take).state["cls_token"], state["cls_token"])


def test_averages_of_torch_itself():
    net = vit()
    source = identify(under(AveragedModel(net).state_dict(), "_orig_mod."))
    assert (source.wrapping, source.left_out) == (("_orig_mod.", "module."), ("_orig_mod.n_averaged",))


def test_entries_among_the_tensors_are_named():
    inner = {**vit().state_dict(), "epoch": 3, "optimizer": {"step": torch.ones(1)}}
    assert identify(inner).left_out == ("epoch", "optimizer")
    assert identify({"model": inner}).left_out == ("model.epoch", "model.optimizer")


def test_a_network_with_a_backbone_of_ours_leaves_its_decoder():
    net = TokenSegmenter(vit(class_token=False, global_pool="", depth=2), "unetr", 2, feature_size=2, norm_name="batch")
    source = identify(net.state_dict())
    assert source.wrapping == ("backbone.",)
    assert {*source.left_out} == {key for key in net.state_dict() if key.startswith("decoder.")}
    assert same(backbone_from(source).network, net.backbone.state_dict())


@pytest.mark.parametrize(("read", "match"), [
    ([1], r"^w\.pt: a list; expected a state dict"),
    ({}, r"^w\.pt: no Vision Transformer of a known family among its entries \(none\)"),
    (nn.Linear(2, 2).state_dict(), "among its entries weight, bias. Save"),
    ({f"layer{i}.weight": torch.ones(1) for i in range(9)}, "layer4.weight, and 4 more"),
    ({"model": {"model": {}}}, "among its entries model"),
    ({3: torch.ones(1)}, "among its entries 3"),
])  # fmt: skip
def test_what_is_no_vision_transformer_is_refused(read, match):
    with pytest.raises(WeightsError, match=match):
        identify(read, "w.pt")


# files


def test_files_of_trainers_and_of_ours(tmp_path, caplog):
    net = monai_vit()
    checkpoint = {"state_dict": under(net.state_dict(), "model."), "epoch": 3, "optimizer_states": [{"lr": 0.1}]}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    source = read_source(tmp_path / "last.ckpt")
    assert isinstance(source, Source)
    assert (source.family, source.wrapping) == ("monai_vit", ("state_dict", "model."))
    assert {"epoch", "optimizer_states"} < {*source.left_out}
    with caplog.at_level(logging.INFO, logger="monai_vit3d"):
        backbone_from(tmp_path / "last.ckpt")
    said = caplog.records[0].getMessage()
    counts = f"7 loaded, 9 converted, 0 missing, {len(source.left_out)} unexpected, assumed: grid 2x2x2"
    assert said == f"{tmp_path / 'last.ckpt'}: monai_vit at state_dict model.: {counts}"
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    assert read_source(str(tmp_path / "w.safetensors")).wrapping == ()
    torch.save({"state_dict": net.state_dict(), "hparams": nn.Linear(1, 1)}, tmp_path / "code.ckpt")
    with pytest.raises(WeightsError, match=r"code\.ckpt: not a readable state dict .* hold more than tensors"):
        read_source(tmp_path / "code.ckpt")
    with pytest.raises(WeightsError, match="no such file"):
        backbone_from(tmp_path / "none.pt")


@torch.no_grad()
@pytest.mark.parametrize("options", [
    {}, {"reg_tokens": 2, "no_embed_class": True, "num_heads": 4}, {"pos_embed": "sincos", "class_token": False,
     "global_pool": ""}, {"embed_layer": ConvStem3D, "norm_layer": nn.LayerNorm}, {"norm_layer": "layernorm"},
], ids=str)  # fmt: skip
def test_our_own_files_say_all_that_no_tensor_shows(tmp_path, options):
    torch.manual_seed(0)
    net = VisionTransformer3D((8, 12, 16), (4, 4, 8), embed_dim=24, depth=1, **{"num_heads": 2, **options}).eval()
    save_backbone(net, tmp_path / "encoder.safetensors")
    source = read_source(tmp_path / "encoder.safetensors")
    assert (source.family, source.assumed) == ("monai_vit3d", ())
    again, report = backbone_from(source)
    x = torch.randn(1, 1, 8, 12, 16)
    assert torch.equal(again(x), net(x))
    assert set(report.loaded) == set(net.state_dict())
    if "embed_layer" not in options:
        larger = backbone_from(source, img_size=(8, 24, 16)).network
        net.set_input_size((8, 24, 16))
        assert torch.equal(larger.state_dict().get("pos_embed", larger.pos_embed), net.pos_embed)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_one_way_for_our_own(tmp_path, kind, caplog):
    net, path = vit(num_classes=3 * (kind == "folder"), rope="mm", act_layer="relu"), tmp_path / "net.safetensors"
    net.save_pretrained(path) if kind == "folder" else save_backbone(net, path)
    source = read_source(path)
    with caplog.at_level(logging.INFO, logger="monai_vit3d"):
        first = backbone_from(source, num_classes=2, global_pool="avg", drop_path_rate=0.5)
    assert caplog.records[0].getMessage() == f"{path}: {first.report.summary}"
    again = VisionTransformer3D.from_pretrained(path, num_classes=2, global_pool="avg")
    assert unlike_layers(first.network, again) == []
    assert first.report.converted == {f"fc_norm.{part}": f"from norm.{part}" for part in ("weight", "bias")}
    assert first.report.missing == ("head.weight", "head.bias")
    assert first.report.unexpected == (("head.bias", "head.weight") if kind == "folder" else ())
    assert same(backbone_from(source).network, net.state_dict())  # a source is not used up
    first.network.blocks[0].mlp.fc1.weight.data.zero_()
    assert same(backbone_from(source).network, net.state_dict())
    with pytest.raises(UsageError, match="would compute something else: act_layer="):
        backbone_from(source, act_layer="gelu")
    with pytest.raises(UsageError, match=r"grid=\(2, 2, 2\); weights of monai_vit3d say theirs"):
        backbone_from(source, grid=(2, 2, 2))


def test_weights_of_a_file_are_in_memory_once(tmp_path, monkeypatch):
    torch.save(monai_vit().state_dict(), tmp_path / "monai.pt")
    save_backbone(vit(), tmp_path / "ours.safetensors")
    read = {}

    def spy(path):
        found = read_with_metadata(path)
        read[path.name] = found[0]
        return found

    monkeypatch.setattr(sources, "read_with_metadata", lambda path: spy(Path(path)))
    monkeypatch.setattr(hub, "read_with_metadata", lambda path: spy(Path(path)))
    for make, name in (
        (backbone_from, "monai.pt"),
        (backbone_from, "ours.safetensors"),
        (VisionTransformer3D.from_pretrained, "ours.safetensors"),
    ):
        found = make(tmp_path / name)
        net = getattr(found, "network", found)
        places = {value.data_ptr() for value in read[name].values()}
        assert {value.data_ptr() for value in net.state_dict().values()} <= places


# what is shown, what was assumed, what is said


def test_what_no_tensor_shows_must_be_passed():
    source = identify(monai_vit().state_dict(), "w.pt")
    assert source.assumed == ("img_size",)
    assert source.options["img_size"] == (8, 8, 8)
    with pytest.raises(
        WeightsError, match=r"^w\.pt: no tensor shows num_heads; pass num_heads= \(64-wide heads would be 1\)\.$"
    ):
        sources.backbone_from(source)
    narrow = ViT(1, (8, 4, 4), 4, hidden_size=24, mlp_dim=32, num_layers=1, num_heads=2)
    with pytest.raises(
        WeightsError, match=r"^w\.pt: no tensor shows img_size, num_heads; pass img_size=, num_heads=\.$"
    ):
        sources.backbone_from(identify(narrow.state_dict(), "w.pt"))
    with pytest.raises(WeightsError, match=r"no tensor shows num_heads; .*nidl's or a bare state dict of this package"):
        sources.backbone_from(dict(vit().state_dict()), img_size=8)


@torch.no_grad()
def test_the_heads_are_those_that_were_passed():
    torch.manual_seed(0)
    net = ViT(1, 8, 4, hidden_size=128, mlp_dim=32, num_layers=1, num_heads=8).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    made = [sources.backbone_from(net.state_dict(), num_heads=heads).network for heads in (8, 2)]
    torch.testing.assert_close(made[0](x), net(x)[0], rtol=0, atol=1e-5)
    assert (made[1](x) - net(x)[0]).abs().max() > 1e-3


def test_the_patch_of_a_linear_embedding_must_be_passed():
    cube = monai_vit(proj_type="perceptron").state_dict()
    assert identify(cube).assumed == ()
    with pytest.raises(WeightsError, match="no tensor shows img_size, patch_size, in_chans; pass"):
        backbone_from(cube)
    net, report = backbone_from(cube, patch_size=4)
    assert (net.in_chans, net.grid_size, report.assumed) == (1, (2, 2, 2), ("grid 2x2x2",))
    linear = ViT(3, 8, (4, 4, 2), hidden_size=24, mlp_dim=32, num_layers=1, num_heads=2, proj_type="perceptron")
    net = backbone_from(linear.state_dict(), patch_size=(4, 4, 2), img_size=8, num_heads=2).network
    assert (net.in_chans, net.grid_size) == (3, (2, 2, 4))


def test_a_grid_that_is_assumed_is_said(caplog):
    state = monai_vit().state_dict()  # 8 positions
    for options, said in (
        ({}, ("grid 2x2x2",)), ({"img_size": 8}, ()), ({"img_size": 16}, ("grid 2x2x2",)),
        ({"img_size": 16, "grid": (1, 2, 4)}, ()), ({"grid": (1, 2, 4)}, ()),
        ({"img_size": (4, 8, 16)}, ("grid 1x2x4",)),
    ):  # fmt: skip
        caplog.clear()
        assert backbone_from(state, **options).report.assumed == said
        assert [record.levelname for record in caplog.records] == ["WARNING"] * len(said)
        assert all(word in caplog.text for word in said)
    assert backbone_from(state, grid=(1, 2, 4)).network.grid_size == (1, 2, 4)


def test_of_a_bare_state_dict_what_is_taken_for_granted_is_said(caplog):
    report = backbone_from(dict(vit(rope="patch", act_layer="relu").state_dict()), img_size=8).report
    words = ("LayerNorm of eps 1e-5", "GELU", "no rotary positions")
    assert {*words} <= {*report.assumed}
    assert all(word in caplog.text and word in str(report) for word in words)
    told = backbone_from(
        dict(vit().state_dict()), img_size=8, act_layer="relu", norm_layer="layernorm", rope="patch"
    ).report
    assert not {*words} & {*told.assumed}


def test_device_and_dtype_are_taken():
    state = monai_vit().state_dict()
    assert {p.dtype for p in backbone_from(state, dtype=torch.bfloat16).network.parameters()} == {torch.bfloat16}
    assert backbone_from(state, device="meta").network.norm.weight.is_meta


@pytest.mark.parametrize("options", [{"img_size": (8, 8)}, {"img_size": 9}, {"num_heads": 7}], ids=str)
def test_options_that_cannot_be_are_usage_errors(tmp_path, options):
    save_backbone(vit(), tmp_path / "x.safetensors")
    torch.save(monai_vit().state_dict(), tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        with pytest.raises((UsageError, WeightsError), match=name):
            backbone_from(tmp_path / name, **options)


@torch.no_grad()
def test_another_patch_grid_and_number_of_channels():
    state = monai_vit().state_dict()
    net, report = backbone_from(state, patch_size=8)
    assert (net.grid_size, net.patch_embed.img_size) == ((2, 2, 2), (16, 16, 16))
    assert report.converted["patch_embed.proj.weight"].endswith(", (64, 1, 4, 4, 4) to (64, 1, 8, 8, 8)")
    net = backbone_from(state, in_chans=2).network
    assert net.patch_embed.proj.weight.shape == (64, 2, 4, 4, 4)
    long = ViT(1, (8, 4, 12), 4, hidden_size=64, mlp_dim=32, num_layers=1, num_heads=1).state_dict()
    with pytest.raises(WeightsError, match=r"^state_dict: pos_embed has positions for 6 patches, grid=None came"):
        backbone_from(long, img_size=16)
    assert backbone_from(long, img_size=16, grid=(2, 1, 3)).network.num_patches == 64


def test_a_new_head_is_said_to_be_new():
    state = monai_vit(classification=True, num_classes=3).state_dict()
    net, report = backbone_from(state, num_classes=5)
    assert isinstance(net.head, nn.Linear)
    assert report.missing == ("head.weight", "head.bias")
    assert {"classification_head.0.weight", "classification_head.0.bias"} < {*report.unexpected}
    assert backbone_from(state).network.head[0].out_features == 3
    assert backbone_from(state, global_pool="avg").report.unexpected == (
        "blocks.0.norm_cross_attn.weight",
        "blocks.0.norm_cross_attn.bias",
    )
    pooled = backbone_from(state, global_pool="avg", num_classes=0).network
    assert torch.equal(pooled.norm.bias, state["norm.bias"])


@pytest.mark.parametrize(("change", "match"), [
    (lambda s: s.update({"blocks.0.ls1.gamma": torch.ones(64)}), "blocks.0.ls1.gamma is not known"),
    (lambda s: s.update({"adapter.weight": torch.ones(1)}), "adapter.weight is not known"),
    (lambda s: s.pop("blocks.0.attn.out_proj.bias"), "blocks.0.attn.proj.bias is missing"),
    (lambda s: s.update({"norm.weight": torch.ones(3)}), r"norm.weight is \(3,\), expected \(64,\)"),
    (lambda s: s.pop("blocks.0.mlp.linear1.weight"), "not all of a network"),
    (lambda s: s.pop("patch_embedding.position_embeddings"), "not all of a network"),
])  # fmt: skip
def test_unexpected_keys_are_refused_by_name(change, match):
    state = monai_vit().state_dict()
    change(state)
    with pytest.raises(WeightsError, match=f"^state_dict: .*{match}"):
        backbone_from(state)


@pytest.mark.slow
@given(st.data())
def test_a_tensor_of_any_other_shape_is_refused(data):
    state = dict(data.draw(st.sampled_from([monai_vit(), monai_vit(proj_type="perceptron"), vit()])).state_dict())
    key = data.draw(st.sampled_from([key for key in state if "cross_attn" not in key]))
    shape = data.draw(st.lists(st.integers(1, 5), max_size=6))
    state[key] = torch.ones(shape)
    with pytest.raises(ValueError, match=r"w\.pt|patch_size|embed_dim|img_size"):
        backbone_from(identify(state, "w.pt"))


def test_half_precision_becomes_single_and_double_stays():
    for given_, dtype in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        net = backbone_from(monai_vit().to(given_).state_dict()).network
        assert {p.dtype for p in net.parameters()} == {dtype}
        assert not net.training


# recognised, built elsewhere or not at all


def test_timms_2d_weights_need_timms_name():
    state = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32).state_dict()
    source = identify({"model": state}, "w.pt")
    assert (source.family, source.options["depth"], source.options["embed_dim"]) == ("timm2d", 2, 192)
    assert source.state.keys() == state.keys()
    with pytest.raises(
        WeightsError, match=r"^w\.pt: a 2D .* create_model\(NAME, img_size, patch_size, pretrained=PATH\)"
    ):
        backbone_from(source)


def test_a_part_of_a_primus_is_refused_by_name():
    primus = {"down_projection.proj.weight": torch.ones(66, 1, 8, 8, 8), "mask_token": torch.ones(1, 1, 66)}
    primus |= {"eva.blocks.0.attn.q_proj.weight": torch.ones(66, 66), "eva.pos_embed": torch.ones(1, 8, 66)}
    with pytest.raises(WeightsError, match=r"^w\.pt: the layout of Primus, but not all of a network: blocks\.0\.attn"):
        identify({"network_weights": primus}, "w.pt")


def test_video_kernels_without_rotary_positions_are_read_as_what_the_caller_says():
    video = VisionTransformer3D(
        (4, 32, 32), (2, 16, 16), 3, class_token=False, global_pool="", pos_embed="none", **WIDE
    )
    encoder = under(video.state_dict(), "module.backbone.")
    checkpoint = {"encoder": encoder, "target_encoder": encoder, "predictor": {"mask_tokens.0": torch.ones(1)}}
    assert identify(checkpoint).family == "vjepa2"
    source = identify(checkpoint, family="nidl")
    assert source.wrapping == ("target_encoder", "module.", "backbone.")
    assert same(backbone_from(source, pos_embed="none", img_size=(4, 32, 32)).network, video.state_dict())
    for family in ("timm2d", "monai_vit"):
        with pytest.raises(WeightsError, match=r"^w\.pt: "):
            identify(checkpoint, "w.pt", family=family)
    for family in ("monai_vit3d", "resnet"):
        with pytest.raises(UsageError, match=f"family='{family}'; expected one of .*'timm2d', 'nidl'"):
            identify(checkpoint, family=family)


def test_a_bare_state_dict_with_a_stem_of_ours_needs_load_backbone():
    with pytest.raises(WeightsError, match="load_backbone"):
        identify(dict(vit(embed_layer=ConvStem3D).state_dict()))
