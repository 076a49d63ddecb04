"""`vit3d weights`: what weights are, what would be loaded of them, and theirs made ours."""

import json

import pytest
import timm
import torch
from monai.networks.nets import ViT
from safetensors.torch import save_file

from monai_vit3d.cli import main
from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.model_args import model_args
from monai_vit3d.weights import create_timm2d, load_backbone, save_backbone
from monai_vit3d.weights.info import convert_weights, describe_weights, fitting_timm_models

NAME, SIZE, PATCH = "test_vit", (32, 32, 8), (16, 16, 4)
KEYS = ["file", "family", "wrapping", "architecture", "assumed", "tensors", "bytes", "types", "sha256", "left_out"]


def ours(seed=0, **options):
    torch.manual_seed(seed)
    return VisionTransformer3D(8, 4, embed_dim=12, depth=2, num_heads=2, **options).eval()


@pytest.fixture(scope="module")
def flat():
    torch.manual_seed(0)
    return timm.create_model(NAME, pretrained=False, img_size=32, num_classes=5).eval()


@pytest.fixture
def flat_file(flat, tmp_path):
    state = {f"backbone.{key}": value for key, value in flat.state_dict().items()}
    torch.save({"teacher": state, "epoch": 3}, tmp_path / "flat.pt")
    return tmp_path / "flat.pt"


@pytest.fixture
def monai_file(tmp_path):
    torch.manual_seed(0)
    net = ViT(1, (8, 8, 8), (4, 4, 4), 12, 24, 2, 2, classification=True, num_classes=3)
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def run(*words):
    return main(["weights", *map(str, words)])


# info


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("options", [{}, {"rope": "mm", "act_layer": "quick_gelu", "class_token": False}], ids=str)
def test_of_ours_everything_is_known(tmp_path, kind, options):
    net, path = ours(num_classes=3 * (kind == "folder"), global_pool="avg", **options), tmp_path / "x.safetensors"
    net.save_pretrained(path) if kind == "folder" else save_backbone(net, path)
    found = describe_weights(path)
    said = model_args(net) if kind == "folder" else {k: v for k, v in model_args(net).items() if k != "num_classes"}
    assert list(found) == [*KEYS, "loaded", "converted", "missing", "unexpected"]
    assert (found["file"], found["family"], found["wrapping"]) == (str(path), "monai_vit3d", [])
    assert found["architecture"] == said
    state = net.state_dict()
    assert (found["tensors"], found["loaded"], found["types"]) == (len(state), len(state), ["float32"])
    assert found["bytes"] == sum(value.numel() * 4 for value in state.values())
    assert (found["sha256"], found["left_out"], found["converted"]) == ("verified", [], {})
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_of_timms_the_wrapping_and_the_models_that_fit(flat, flat_file):
    found = describe_weights(flat_file)
    assert (found["family"], found["wrapping"]) == ("timm2d", ["teacher", "backbone."])
    assert found["left_out"] == ["epoch"]
    assert found["sha256"] == "not in the file"
    assert found["tensors"] == len(flat.state_dict())
    assert NAME in found["timm_models"]
    assert "test_vit2" not in found["timm_models"]
    assert f"timm_name={found['timm_models'][0]} img_size=112,112,56 patch_size=16,16,8" in found["needed"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "others"), [
    ("vit_small_patch14_reg4_dinov2", []),
    ("vit_small_patch14_dinov2", []),
    ("vit_tiny_patch16_224", ["deit_tiny_patch16_224", "vit_tiny_patch16_384"]),
    ("vit_pwee_patch16_reg1_gap_256", []),
    ("vit_small_patch16_dinov3", []),
    ("eva02_tiny_patch14_224", ["eva02_tiny_patch14_336"]),
])  # fmt: skip
def test_models_are_told_apart_by_keys_and_shapes(name, others):
    state = timm.create_model(name, pretrained=False, device="meta", num_classes=7).state_dict()
    assert sorted([name, *others]) == [fit for fit in fitting_timm_models(state) if not fit.startswith("vit_wee")]
    deeper = {**state, **{k.replace("blocks.0.", "blocks.99."): v for k, v in state.items() if "blocks.0." in k}}
    assert fitting_timm_models(deeper) == []


@pytest.mark.slow
def test_a_dinov3_is_a_2d_network_of_timms(tmp_path):
    model = timm.create_model("vit_small_patch16_dinov3", pretrained=False, embed_dim=24, depth=2, num_heads=2)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pt")
    found = describe_weights(tmp_path / "w.pt")
    assert (found["family"], found["wrapping"], found["assumed"]) == ("timm2d", ["model"], [])
    assert found["architecture"] == {"in_chans": 3, "embed_dim": 24, "depth": 2, "class_token": True}
    assert found["needed"].startswith("timm's name of the model")


@pytest.mark.slow
def test_dinov2s_own_words_are_understood():
    state = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, device="meta").state_dict()
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 384)
    assert fitting_timm_models(state) == ["vit_small_patch14_reg4_dinov2"]


def test_of_monais_what_is_missing(monai_file):
    found = describe_weights(monai_file)
    assert (found["family"], found["wrapping"]) == ("monai_vit", ["state_dict", "module."])
    assert "num_heads" in found["needed"]
    assert str(monai_file) not in found["needed"]
    assert found["architecture"]["embed_dim"] == 12
    assert "loaded" not in found
    assert json.loads(json.dumps(found)) == found


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        describe_weights(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match=r"config\.json.*no such file|model\.safetensors.*no such file"):
        describe_weights(tmp_path)
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="no Vision Transformer of a known family"):
        describe_weights(tmp_path / "other.pt")
    ours().save_pretrained(tmp_path / "net")
    config = tmp_path / "net" / "config.json"
    config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(WeightsError, match="depth: 3 there, 2 here"):
        describe_weights(tmp_path / "net")


def test_the_command_says_the_same(tmp_path, capsys, flat_file):
    save_backbone(ours(), tmp_path / "x.safetensors")
    assert run("info", tmp_path / "x.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out) == describe_weights(tmp_path / "x.safetensors")
    assert run("info", tmp_path / "x.safetensors") == 0
    lines = {line[:12].strip(): line[14:] for line in capsys.readouterr().out.splitlines()}
    assert lines["family"] == "monai_vit3d"
    assert 'act_layer="GELU"' in lines["architecture"]
    assert lines["left_out"] == "none"
    assert run("info", tmp_path / "none.pt") == 2
    assert "no such file" in capsys.readouterr().err


# convert


@pytest.mark.slow
@torch.no_grad()
def test_timms_become_a_folder_and_a_file(flat, flat_file, tmp_path, capsys):
    how = ["--timm", NAME, "--img-size", "32,32,8", "--patch-size", "16,16,4", "--in-chans", 1, "--axis", 2]
    how += ["--kernel", "center", "--positions", "factored"]
    want = create_timm2d(NAME, SIZE, PATCH, pretrained=flat.state_dict(), in_chans=1, num_classes=5, kernel="center",
                         positions="factored").network.eval()  # fmt: skip
    for out in (tmp_path / "net", tmp_path / "net.safetensors"):
        assert run("convert", flat_file, out, *how, "--num-classes", 5) == 0
        said = capsys.readouterr().out
        assert "patch_embed.proj.weight: (64, 3, 16, 16) to (64, 1, 16, 16, 4)" in said
        assert "unexpected: epoch" in said
    net = VisionTransformer3D.from_pretrained(tmp_path / "net")
    x = torch.randn(1, 1, *SIZE)
    assert torch.equal(net(x), want(x))
    again = VisionTransformer3D.from_pretrained(tmp_path / "net.safetensors")
    assert torch.equal(again.forward_features(x), want.forward_features(x))
    assert again.num_classes == 0


def test_monais_become_ours_without_their_head(monai_file, tmp_path):
    with pytest.raises(UsageError, match=r"num_classes=0 leaves it out, as OUT\.safetensors does"):
        convert_weights(monai_file, tmp_path / "net", num_heads=2)  # it ends in a tanh
    assert not (tmp_path / "net").exists()
    report = convert_weights(monai_file, tmp_path / "net", num_heads=2, num_classes=0)
    assert any(key.endswith("head.0.weight") for key in report.unexpected)
    assert run("convert", monai_file, tmp_path / "net.safetensors", "--num-heads", 2) == 0
    one, other = (VisionTransformer3D.from_pretrained(tmp_path / name) for name in ("net", "net.safetensors"))
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_ours_of_another_size_and_head(tmp_path, kind):
    net, path = ours(num_classes=3 * (kind == "folder")), tmp_path / "x.safetensors"
    net.save_pretrained(path) if kind == "folder" else save_backbone(net, path)
    report = convert_weights(path, tmp_path / "out", img_size=(12, 8, 8), num_classes=5)
    assert report.converted == {"pos_embed": "(1, 9, 12) to (1, 13, 12)"}
    assert report.missing == ("head.weight", "head.bias")
    assert set(report.unexpected) == ({"head.weight", "head.bias"} if kind == "folder" else set())
    assert len(report.loaded) == len(net.state_dict()) - 1 - 2 * (kind == "folder")
    again = VisionTransformer3D.from_pretrained(tmp_path / "out")
    net.set_input_size((12, 8, 8))
    assert torch.equal(again.pos_embed, net.pos_embed)
    assert again.head.weight.shape == (5, 12)


@pytest.mark.slow
def test_what_is_there_is_not_overwritten_unless_asked(tmp_path, capsys):
    path = tmp_path / "in.safetensors"
    save_backbone(ours(1), path)
    for out in (tmp_path / "net", tmp_path / "net.safetensors"):
        assert run("convert", path, out) == 0
        target = out / "model.safetensors" if out.is_dir() else out
        before = target.read_bytes()
        save_backbone(ours(2), path)
        capsys.readouterr()
        assert run("convert", path, out) == 2
        assert "there already" in capsys.readouterr().err
        assert target.read_bytes() == before
        assert run("convert", path, out, "--overwrite") == 0
        assert target.read_bytes() != before
        save_backbone(ours(1), path)
    (tmp_path / "empty").mkdir()
    assert run("convert", path, tmp_path / "empty") == 0
    assert run("convert", path, path, "--overwrite") == 0  # onto itself
    assert torch.equal(load_backbone(ours(), path).norm.weight, ours(1).norm.weight)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "match"), [
    ({}, r"expected timm_name=, img_size=, patch_size=\. By their shapes these fit: .*test_vit"),
    ({"timm_name": NAME, "img_size": SIZE}, "expected patch_size=.$"),
    ({"timm_name": "vit_tiny_patch16_224", "img_size": SIZE, "patch_size": PATCH}, "flat.pt: .*expected"),
    ({"timm_name": "resnet50", "img_size": SIZE, "patch_size": PATCH}, "flat.pt: 'resnet50' is none of timm's"),
])  # fmt: skip
def test_2d_weights_need_their_name_and_sizes(flat_file, tmp_path, options, match):
    with pytest.raises((UsageError, WeightsError), match=match):
        convert_weights(flat_file, tmp_path / "net", **options)
    assert not (tmp_path / "net").exists()


def test_options_of_other_families_are_refused(tmp_path, monai_file):
    save_backbone(ours(), tmp_path / "x.safetensors")
    for path, options in (
        (tmp_path / "x.safetensors", {"timm_name": NAME}),
        (tmp_path / "x.safetensors", {"grid": (2, 2, 2)}),
        (monai_file, {"kernel": "mean", "num_heads": 2}),
    ):
        with pytest.raises(UsageError, match=rf"{path.name}: {next(iter(options))}.*Leave it out"):
            convert_weights(path, tmp_path / "net", **options)


def test_one_of_several_networks_is_taken(tmp_path):
    one, other = ({f"backbone.{k}": v for k, v in ours(seed).state_dict().items()} for seed in (1, 2))
    torch.save({"student": one, "teacher": other}, tmp_path / "both.pt")
    for take, seed in (("student", 1), ("teacher", 2)):
        assert describe_weights(tmp_path / "both.pt", take=take)["wrapping"] == [take, "backbone."]
        out = tmp_path / f"{take}.safetensors"
        sizes = ["--img-size", 8, "--num-heads", 2]
        assert run("convert", tmp_path / "both.pt", out, "--take", take, *sizes) == 0
        assert torch.equal(load_backbone(ours(), out).blocks[0].mlp.fc1.weight, ours(seed).blocks[0].mlp.fc1.weight)


@pytest.mark.slow
def test_safetensors_without_a_header_of_ours_are_told_by_their_keys(flat, tmp_path):
    save_file(flat.state_dict(), tmp_path / "w.safetensors")
    found = describe_weights(tmp_path / "w.safetensors")
    assert (found["family"], found["sha256"]) == ("timm2d", "not in the file")


@pytest.mark.parametrize(("words", "said"), [
    (["--num-heads", 7], "m.pt: "),
    (["--num-heads", 2, "--img-size", 33], "m.pt: "),
    ([], r"no tensor shows num_heads; pass --num-heads."),
    (["--take", "net"], "--take 'net' fits 0"),
    (["--family", "resnet"], "--family 'resnet'; expected one of"),
    (["--num-heads", 2, "--kernel", "mean"], "kernel: for 2D weights"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_the_commands_words(monai_file, tmp_path, capsys, words, said):
    assert run("convert", monai_file, tmp_path / "x.safetensors", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(("flag", "words"), [
    ("--img-size", "abc"), ("--img-size", "32,32"), ("--patch-size", "0"), ("--grid", "4"), ("--grid", "a,b"),
])  # fmt: skip
def test_sizes_that_are_none_are_said(monai_file, tmp_path, capsys, flag, words):
    with pytest.raises(SystemExit):
        run("convert", monai_file, tmp_path / "x.safetensors", flag, words)
    said = capsys.readouterr().err
    assert f"vit3d weights convert: {flag}: '{words}'; expected " in said


def test_2d_sizes_that_cannot_be_are_said(flat_file, tmp_path, capsys):
    how = ["--timm", NAME, "--img-size", 33, "--patch-size", "16,16,4"]
    assert run("convert", flat_file, tmp_path / "x.safetensors", *how) == 2
    assert "flat.pt: " in capsys.readouterr().err


def test_positions_and_family_can_be_said(tmp_path, capsys):
    torch.save(dict(ours(pos_embed="none").state_dict()), tmp_path / "w.pt")  # without the record of its arguments
    how = ["--img-size", 8, "--num-heads", 2]
    assert run("convert", tmp_path / "w.pt", tmp_path / "x.safetensors", *how) == 2
    assert "pass --pos-embed." in capsys.readouterr().err
    for family in ([], ["--family", "nidl"]):
        words = [*how, "--pos-embed", "none", "--overwrite", *family]
        assert run("convert", tmp_path / "w.pt", tmp_path / "x.safetensors", *words) == 0
    assert run("info", tmp_path / "w.pt", "--family", "nidl") == 0
    assert "pass --img-size, --num-heads, --pos-embed" in capsys.readouterr().out


def test_of_a_file_without_a_head_none_is_said_to_be_loaded(tmp_path):
    torch.save(ours(num_classes=3).state_dict(), tmp_path / "w.pt")
    report = convert_weights(tmp_path / "w.pt", tmp_path / "x.safetensors", num_heads=2, img_size=8)
    assert set(report.unexpected) == {"head.weight", "head.bias"}
    assert not any(key.startswith("head.") for key in (*report.loaded, *report.converted, *report.missing))
