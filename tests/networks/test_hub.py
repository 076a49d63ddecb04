"""Networks in folders and on the hub: exact, all or nothing, and refused where a file is not what was written."""

import copy
import hashlib
import json
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import timm
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import Mlp
from torch import nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers import ConvStem3D, RotaryPositions3D, set_spacing
from monai_vit3d.networks import VisionTransformer3D, hub
from monai_vit3d.networks.model_args import model_args
from monai_vit3d.weights import load_backbone, save_backbone
from monai_vit3d.weights.convert.timm2d import from_timm2d
from monai_vit3d.weights.info import describe_weights
from tests.helpers import run_warm
from tests.weights.convert.test_timm2d import FAMILIES, flat, sizes

SMALL = {"img_size": (8, 12, 16), "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}
FILES = {"config.json", "model.safetensors", "README.md"}


def vit(seed=0, **options):
    torch.manual_seed(seed)
    net = VisionTransformer3D(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def volume(net, seed=0):
    x = torch.randn(2, net.in_chans, *net.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))
    return x.to(net.patch_embed.proj.weight)


def assert_same(one, other):
    assert not other.training
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype, key
        assert torch.equal(value, theirs[key]), key
    with torch.no_grad():
        assert torch.equal(other(volume(one)), one(volume(one)))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path):
    net = vit(1)
    net.save_pretrained(tmp_path / "net")
    return net, tmp_path / "net"


# what is written


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_timms_comes_back_bit_for_bit(tmp_path, family):
    model = flat(*FAMILIES[family])
    net = from_timm2d(model, *sizes(model, tokens=2)).network
    net.save_pretrained(tmp_path)
    assert_same(net, VisionTransformer3D.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [
    {}, {"pos_embed": "sincos", "reg_tokens": 2}, {"embed_layer": ConvStem3D, "global_pool": "map"},
    {"num_classes": 0, "global_pool": "", "class_token": False, "pos_embed": "none", "rope": "box"},
    {"dynamic_img_size": True, "dynamic_img_pad": True, "pos_embed": "sincos"},
], ids=str)  # fmt: skip
def test_round_trip_is_exact_in_every_type(tmp_path, options, dtype):
    net = vit(1, **options).to(dtype)
    assert net.save_pretrained(tmp_path / "a" / "b") is None
    again = VisionTransformer3D.from_pretrained(str(tmp_path / "a" / "b"))
    assert_same(net, again)
    assert all(p.requires_grad for p in again.parameters())
    assert model_args(again) == model_args(net)


def test_mixed_types_are_kept_and_parameters_are_the_networks_own(saved):
    net, folder = saved
    net.norm.double()
    net.save_pretrained(folder)
    before = contents(folder)
    again = VisionTransformer3D.from_pretrained(folder)
    assert (again.norm.weight.dtype, again.head.weight.dtype) == (torch.float64, torch.float32)
    torch.optim.SGD(again.parameters(), 1.0).zero_grad()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
            assert parameter.data_ptr() % 64 == 0  # kernels round otherwise at odd addresses
    assert contents(folder) == before


def test_the_files_are_what_other_tools_read(tmp_path):
    net = vit(1)
    net.save_pretrained(tmp_path, license="cc-by-4.0", tags=("liver",))
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "config.json").read_text()) == model_args(net)
    state = load_file(tmp_path / "model.safetensors")
    assert set(state) == set(net.state_dict())
    assert torch.equal(state["head.bias"], net.head.bias)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    content = (tmp_path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert metadata["sha256"] == hashlib.sha256(content[start:]).hexdigest()
    assert json.loads(metadata["model_args"]) == model_args(net)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "monai_vit3d")
    assert {"liver", "monai_vit3d"} <= set(card.data.tags)
    assert card.data.pipeline_tag == "image-classification"
    assert "| `img_size` | `[8, 12, 16]` |" in card.text
    assert f"{sum(p.numel() for p in net.parameters()):,} parameters" in card.text
    assert net.generate_model_card(license="cc-by-4.0", tags=("liver",)).content == card.content
    code = card.text.split("```python\n")[1].split("```")[0].replace("FOLDER or OWNER/NAME", str(tmp_path))
    space = {}
    exec(code, space)
    assert space["output"].shape == (1, 3)


def test_headless_networks_are_for_features(tmp_path):
    vit(num_classes=0).save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "image-feature-extraction"
    assert ModelCard.load(tmp_path / "README.md").data.license is None


def test_a_page_that_is_there_stays_and_the_rest_is_new(saved):
    _, folder = saved
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine, too")
    other = vit(2, depth=1)
    other.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == FILES | {"notes.txt"}
    assert_same(other, VisionTransformer3D.from_pretrained(folder))


def test_a_page_that_was_written_here_follows_the_network(saved):
    _, folder = saved
    other = vit(2, depth=1)
    other.save_pretrained(folder, license="mit")
    card = ModelCard.load(folder / "README.md")
    assert card.content == other.generate_model_card(license="mit").content
    assert "| `depth` | `1` |" in card.text
    other.save_pretrained(folder)
    assert ModelCard.load(folder / "README.md").data.license is None
    (folder / "README.md").write_bytes((folder / "README.md").read_bytes().replace(b"\n", b"\r\n"))
    vit(2, depth=3).save_pretrained(folder)
    assert "| `depth` | `3` |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("change", [
    ("library_name: monai_vit3d", "library_name: monai_vit3d\nlicense: mit"),
    ("Nothing is known here of the data", "Trained on 400 livers. Nothing else is known of the data"),
    ("<!-- written by", "Ask us.\n<!-- written by"), ("changes this page -->\n", "changes this page -->\nAsk us.\n"),
], ids=["yaml", "text", "before the mark", "after the mark"])  # fmt: skip
def test_a_page_that_was_changed_stays(saved, change):
    page = saved[1] / "README.md"
    text = page.read_text()
    assert change[0] in text
    page.write_text(text.replace(*change))
    vit(2, depth=1).save_pretrained(saved[1])
    assert page.read_text() == text.replace(*change)


@pytest.mark.parametrize("failing", [*sorted(FILES), "architecture"])
@pytest.mark.parametrize("there", [False, True])
def test_all_or_nothing(tmp_path, monkeypatch, failing, there):
    folder, before = tmp_path / "net", None
    if there:
        vit(1).save_pretrained(folder)
        (folder / "README.md").unlink()
        before = contents(folder)
    real = os.open

    def full(path, *args, **options):
        if Path(path).name.startswith(f".{failing}."):
            raise OSError(28, "No space left on device")
        return real(path, *args, **options)

    other = vit(2)
    if failing == "architecture":
        other.blocks[1].mlp = nn.Identity()
    else:
        monkeypatch.setattr(os, "open", full)
    with pytest.raises((OSError, UsageError)):
        other.save_pretrained(folder)
    monkeypatch.undo()
    assert (contents(folder) if there else folder.exists()) == (before if there else False)


def test_config_is_moved_to_its_place_last(tmp_path, monkeypatch):
    """So whatever a killed process leaves is the old network, the new one, or refused."""
    moved, real = [], os.replace

    def replace(path, target, **options):
        moved.append(Path(target).name)
        return real(path, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    vit().save_pretrained(tmp_path)
    assert moved == ["model.safetensors", "README.md", "config.json"]


class OwnMlp(Mlp):
    pass


def test_what_no_file_can_name_is_refused_on_save(tmp_path):
    own, swapped = vit(1, mlp_layer=OwnMlp), vit(1)
    swapped.blocks[1].mlp.act = nn.ReLU()
    for net, match in ((own, "mlp_layer: '.*OwnMlp'"), (swapped, r"is: blocks\.1\.mlp\.act would not be built")):
        with pytest.raises(UsageError, match=match) as caught:
            net.save_pretrained(tmp_path / "net")
        assert not (tmp_path / "net").exists()
        assert "Write it with save_backbone" in str(caught.value)
    save_backbone(own, tmp_path / "own.safetensors")  # as the message says
    again = load_backbone(vit(mlp_layer=OwnMlp), tmp_path / "own.safetensors")
    assert torch.equal(again.blocks[1].mlp.fc1.weight, own.blocks[1].mlp.fc1.weight)


def test_arguments_that_nobody_takes_are_refused(tmp_path):
    for options in ({"licence": "mit"}, {"private": True}, {"config": {}}):
        with pytest.raises(UsageError, match=next(iter(options))):
            vit().save_pretrained(tmp_path / "net", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: a file; expected a folder"):
        vit().save_pretrained(tmp_path / "file")


# what is refused


def refused(folder, match):
    with pytest.raises(WeightsError, match=match) as caught:
        VisionTransformer3D.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_files_that_are_not_there(saved, tmp_path):
    for name in ("config.json", "model.safetensors"):
        other = tmp_path / f"without {name}"
        shutil.copytree(saved[1], other)
        (other / name).unlink()
        refused(other, f"{name}: no such file")


def test_files_that_are_cut_off_anywhere(saved):
    _, folder = saved
    for name in ("config.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        for length in [*range(0, 12), *range(12, len(whole) - 1, len(whole) // 41)]:
            (folder / name).write_bytes(whole[:length])
            refused(folder, "not a readable safetensors file|not JSON")
        (folder / name).write_bytes(whole)
    VisionTransformer3D.from_pretrained(folder)


def test_a_flipped_bit_among_the_tensors(saved):
    _, folder = saved
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content), 997):
        content[place] ^= 4
        path.write_bytes(content)
        refused(folder, "damaged")
        content[place] ^= 4


@pytest.mark.parametrize("key", sorted(model_args(VisionTransformer3D(**SMALL))))
def test_a_config_that_says_something_else_is_refused_by_key(saved, key):
    path = saved[1] / "config.json"
    said = json.loads(path.read_text())
    was = said[key]
    said[key] = (not was) if isinstance(was, bool) else [was] if isinstance(was, (dict, list, str)) else (was or 0) + 1
    path.write_text(json.dumps(said))
    refused(saved[1], rf"another architecture than config\.json says: {key}: ")
    del said[key]
    path.write_text(json.dumps(said))
    refused(saved[1], rf"another architecture than config\.json says: {key}: None there, ")


def test_the_weights_of_another_network_are_refused_by_what_differs(saved, tmp_path):
    vit(2, depth=1, act_layer="silu").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved[1])
    refused(saved[1], "act_layer: 'GELU' there, 'SiLU' here; depth: 2 there, 1 here")


def test_tensors_that_are_not_what_the_config_says(saved):
    """A header that agrees with config.json and not with the tensors."""
    net, folder = saved
    state = net.state_dict()
    metadata = {"model_args": (folder / "config.json").read_text()}
    save_file(state, folder / "model.safetensors", metadata)
    refused(folder, "it has no model_args and sha256")
    for change, match in (
        ({"norm.weight": torch.ones(13)}, r"norm.weight is \(13,\), expected \(12,\)"),
        ({"extra": torch.ones(1)}, "extra is not known"),
        ({"norm.bias": None}, "norm.bias is missing"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        hub.write_safetensors(changed, metadata, folder / "model.safetensors")
        refused(folder, match)
    hub.write_safetensors(state, {"model_args": "["}, folder / "model.safetensors")
    refused(folder, "header's 'model_args' cannot be read")


@pytest.mark.parametrize(("change", "match"), [
    ({"depth": 10**9}, "1000000000 blocks, but the weights are 32 tensors"),
    ({"block_options": {"num_parallel": 10**9}}, "but the weights are 32 tensors"),
    ({"act_layer": "os.system"}, "act_layer: 'os.system'"),
    ({"embed_dim": "wide"}, "no network can be built"),
])  # fmt: skip
def test_a_hostile_pair_of_files_is_refused_before_anything_is_built(saved, change, match):
    net, folder = saved
    said = {**model_args(net), **change}
    (folder / "config.json").write_text(json.dumps(said))
    hub.write_safetensors(net.state_dict(), {"model_args": json.dumps(said)}, folder / "model.safetensors")
    refused(folder, match)


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100000, "\x00"])
def test_a_config_that_is_none(saved, text):
    (saved[1] / "config.json").write_text(text)
    refused(saved[1], r"config\.json: ")


# options of from_pretrained


@pytest.mark.parametrize("size", [{"img_size": (12, 8, 16)}, {"patch_size": (2, 4, 8)},
                                  {"img_size": 16, "patch_size": 8}], ids=str)  # fmt: skip
@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
def test_other_sizes_are_resampled_as_the_network_does_it(tmp_path, size, pos_embed):
    net = vit(1, pos_embed=pos_embed)
    net.save_pretrained(tmp_path)
    again = VisionTransformer3D.from_pretrained(tmp_path, **size)
    net.set_input_size(**size)
    assert_same(net, again)


@torch.no_grad()
def test_a_new_head_only_where_another_is_asked_for(saved, caplog):
    net, folder = saved
    with caplog.at_level("DEBUG", logger="monai_vit3d"):
        again = VisionTransformer3D.from_pretrained(folder, num_classes=5)
    assert "missing: head.weight, head.bias, unexpected: head.bias, head.weight" in caplog.text
    assert again.head.weight.shape == (5, 12)
    x = volume(net)
    assert torch.equal(again.forward_features(x), net.forward_features(x))
    assert_same(net, VisionTransformer3D.from_pretrained(folder, num_classes=3, global_pool="token"))
    bare = VisionTransformer3D.from_pretrained(folder, num_classes=0)
    assert torch.equal(bare(x), net.forward_head(net.forward_features(x), pre_logits=True))
    pooled = VisionTransformer3D.from_pretrained(folder, global_pool="avg")
    want = net.head(net.norm(net._run_blocks(net._tokens(x)[0], [], None)[0][:, 1:].mean(1)))
    torch.testing.assert_close(pooled(x), want)  # the norm moved behind the pooling, the head is the file's


@pytest.mark.parametrize("embed", [{}, {"embed_layer": ConvStem3D}], ids=str)
@torch.no_grad()
def test_other_channels(tmp_path, embed):
    net = vit(1, in_chans=3, **embed).double()
    net.save_pretrained(tmp_path)
    gray = VisionTransformer3D.from_pretrained(tmp_path, in_chans=1)
    x = volume(gray)
    torch.testing.assert_close(gray(x), net(x.expand(-1, 3, -1, -1, -1)), rtol=0, atol=1e-10)


@torch.no_grad()
def test_type_place_and_what_leaves_the_weights_alone(saved):
    net, folder = saved
    again = VisionTransformer3D.from_pretrained(folder, dtype=torch.float64, device="cpu", drop_path_rate=0.5)
    assert {p.dtype for p in again.parameters()} == {torch.float64}
    torch.testing.assert_close(again(volume(net).double()).float(), net(volume(net)))
    assert again.blocks[1].drop_path1.drop_prob == 0.5
    free = VisionTransformer3D.from_pretrained(folder, dynamic_img_size=True, dynamic_img_pad=True)
    assert torch.equal(free(volume(net)), net(volume(net)))
    assert free(torch.zeros(1, 1, 9, 12, 20)).shape == (1, 3)


@pytest.mark.parametrize("change", [
    {"num_heads": 3}, {"act_layer": "silu"}, {"norm_layer": "layernorm"}, {"qk_norm": True}, {"pos_embed": "sincos"},
    {"mlp_layer": OwnMlp}, {"rope": "patch"}, {"depth": 1}, {"fc_norm": True}, {"pre_norm": True},
], ids=str)  # fmt: skip
def test_options_that_would_change_what_the_weights_compute_are_refused(saved, change):
    with pytest.raises(UsageError, match=f"{next(iter(change))}=.* came, .* was asked for|norm_eps=1e-05 came"):
        VisionTransformer3D.from_pretrained(saved[1], **change)


def test_a_file_of_save_backbone_is_enough(tmp_path):
    net = vit(1, act_layer="silu", num_classes=0)
    save_backbone(net, tmp_path / "encoder.safetensors")
    assert_same(net, VisionTransformer3D.from_pretrained(tmp_path / "encoder.safetensors"))
    torch.save(net.state_dict(), tmp_path / "encoder.pt")  # it records the network's arguments
    assert_same(net, VisionTransformer3D.from_pretrained(tmp_path / "encoder.pt"))
    torch.save(dict(net.state_dict()), tmp_path / "encoder.pt")
    with pytest.raises(WeightsError, match="no model_args and sha256"):
        VisionTransformer3D.from_pretrained(tmp_path / "encoder.pt")


@pytest.mark.parametrize("options", [{}, {"rope": "mm"}], ids=str)
def test_a_pool_that_save_backbone_leaves_out_is_new(tmp_path, caplog, options):
    net = vit(1, global_pool="map", num_classes=0, **options)
    save_backbone(net, tmp_path / "encoder.safetensors")
    torch.manual_seed(3)
    with caplog.at_level("DEBUG", logger="monai_vit3d"):
        again = VisionTransformer3D.from_pretrained(tmp_path / "encoder.safetensors")
    assert "missing: attn_pool.latent, attn_pool." in caplog.text
    came, pool = net.state_dict(), {key for key in net.state_dict() if key.startswith("attn_pool.")}
    assert all(torch.equal(value, came[key]) for key, value in again.state_dict().items() if key not in pool)
    assert again.global_pool == "map"
    torch.manual_seed(4)
    fresh = VisionTransformer3D(**{**SMALL, "num_classes": 0}, global_pool="map", **options).state_dict()
    for key in pool:  # drawn as a new network draws it
        one, other = again.state_dict()[key], fresh[key]
        assert torch.equal(one, other) or (one.std() / other.std() - 1).abs() < 0.6, key
    other = VisionTransformer3D.from_pretrained(tmp_path / "encoder.safetensors", global_pool="avg", num_classes=2)
    assert (other.global_pool, other.head.weight.shape) == ("avg", (2, 12))
    found = describe_weights(tmp_path / "encoder.safetensors")
    assert set(found["missing"]) == pool
    assert found["loaded"] == len(came) - len(pool)


def test_a_pool_is_missed_in_a_whole_network(tmp_path):
    net = vit(1, global_pool="map")
    net.save_pretrained(tmp_path)
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("attn_pool.")}
    metadata = {"model_args": (tmp_path / "config.json").read_text()}
    hub.write_safetensors(state, metadata, tmp_path / "model.safetensors")
    refused(tmp_path, r"attn_pool\.latent is missing")


@pytest.mark.parametrize(("options", "match"), [
    ({"img_sise": 16}, "unknown option img_sise; VisionTransformer3D has none such"),
    ({"torch_dtype": torch.float16}, "unknown option torch_dtype; dtype= is meant"),
    ({"map_location": "cpu"}, "unknown option map_location; device= is meant"),
    ({"strict": False}, "unknown option strict; a network is loaded whole"),
    ({"dtype": "bfloat"}, "dtype='bfloat'; expected a type of real numbers"),
    ({"dtype": "nn"}, "dtype='nn'; expected a type of real numbers"),
    ({"dtype": torch.int8}, r"dtype=torch\.int8; expected a type of real numbers"),
    ({"num_classes": -1}, "num_classes=-1; expected a whole number from 0"),
    ({"num_classes": True}, "num_classes=True; expected a whole number from 0"),
], ids=str)  # fmt: skip
def test_what_is_no_option_is_refused(saved, options, match):
    for cls in (VisionTransformer3D, Buffered) if "dtype" in match.split(";")[1] else (VisionTransformer3D,):
        with pytest.raises(UsageError, match=match):
            cls.from_pretrained(saved[1], **options)


def test_a_type_by_its_name(saved):
    for word in ("bfloat16", "torch.bfloat16"):
        net = VisionTransformer3D.from_pretrained(saved[1], dtype=word)
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}


def test_rotary_positions_that_count_patches_take_no_other_patch(tmp_path):
    counting = {"rope": "patch", "pos_embed": "none"}
    vit(1, **counting).save_pretrained(tmp_path / "patch")
    with pytest.raises(UsageError, match=r"patch_size=2; the rotary positions count patches of \[4, 4, 4\]"):
        VisionTransformer3D.from_pretrained(tmp_path / "patch", patch_size=2)
    again = VisionTransformer3D.from_pretrained(tmp_path / "patch", patch_size=(4, 4, 4), img_size=16)
    assert again.grid_size == (4, 4, 4)
    vit(1, **{**counting, "rope": "box"}).save_pretrained(tmp_path / "box")
    assert VisionTransformer3D.from_pretrained(tmp_path / "box", patch_size=2).grid_size == (4, 6, 8)
    related = partial(RotaryPositions3D, unit="patch", reference=(2, 3, 4))
    vit(1, **{**counting, "rope": related}).save_pretrained(tmp_path / "related")
    assert VisionTransformer3D.from_pretrained(tmp_path / "related", patch_size=2).grid_size == (4, 6, 8)


@pytest.mark.parametrize("sizes", [{}, {"img_size": 16}], ids=str)
def test_positions_that_are_not_trained_stay_so(tmp_path, sizes):
    net = vit(1)
    net.pos_embed.requires_grad_(False)
    net.save_pretrained(tmp_path / "net")
    save_backbone(net, tmp_path / "encoder.safetensors")
    for place in ("net", "encoder.safetensors"):
        again = VisionTransformer3D.from_pretrained(tmp_path / place, **sizes)
        assert [name for name, p in again.named_parameters() if not p.requires_grad] == ["pos_embed"]
    trained = load_backbone(vit(), tmp_path / "encoder.safetensors")  # the caller's network is the caller's
    assert trained.pos_embed.requires_grad
    net.requires_grad_(False)  # frozen as a whole: no mark of the positions
    net.save_pretrained(tmp_path / "net")
    assert all(p.requires_grad for p in VisionTransformer3D.from_pretrained(tmp_path / "net").parameters())


def test_a_network_that_was_not_blank_keeps_mixed_types(tmp_path):
    torch.manual_seed(0)
    net = Buffered(**SMALL).eval()
    net.blocks.half()
    net.save_pretrained(tmp_path)
    again = Buffered.from_pretrained(tmp_path)
    types = {key: value.dtype for key, value in net.state_dict().items()}
    assert {key: value.dtype for key, value in again.state_dict().items()} == types
    assert set(types.values()) == {torch.float16, torch.float32}
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())


def test_rotary_positions_in_mm_have_no_spacing_until_it_is_set(tmp_path):
    net = vit(1, rope="mm")
    set_spacing(net, (1.0, 1.0, 3.0))
    net.save_pretrained(tmp_path)
    again = VisionTransformer3D.from_pretrained(tmp_path)
    assert again.rope.spacing_mm is None
    set_spacing(again, (1.0, 1.0, 3.0))
    assert_same(net, again)


class Buffered(VisionTransformer3D):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x):
        return super().forward(x) * self.scale


def test_a_subclass_comes_back_as_itself_with_buffers_that_no_file_holds(tmp_path):
    torch.manual_seed(0)
    net = Buffered(**SMALL).eval()
    net.save_pretrained(tmp_path)
    again = Buffered.from_pretrained(tmp_path)
    assert type(again) is Buffered
    assert_same(net, again)


# the hub


def test_a_hubs_name_is_fetched_with_the_callers_wishes(saved, tmp_path, monkeypatch):
    net, folder = saved
    asked = []

    def fetch(repo_id, filename, **how):
        asked.append((repo_id, filename, how))
        return str(folder / filename)

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    how = {"revision": "v2", "token": "t", "cache_dir": "c", "force_download": True, "local_files_only": True}
    assert_same(net, VisionTransformer3D.from_pretrained("owner/name", **how))
    assert asked == [("owner/name", "config.json", how), ("owner/name", "model.safetensors", how)]


def test_the_hubs_own_cache_serves_without_a_network(saved, tmp_path):
    net, folder = saved
    commit = "a" * 40
    snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / commit
    refs = tmp_path / "cache" / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)
    shutil.copytree(folder, snapshot)
    how = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    assert_same(net, VisionTransformer3D.from_pretrained("owner/name", **how))
    with pytest.raises(WeightsError, match="owner/other: no such folder, and the hub did not give it"):
        VisionTransformer3D.from_pretrained("owner/other", **how)


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "/not/there", "a b"])
def test_what_is_neither_a_folder_nor_a_hubs_name(name):
    with pytest.raises(WeightsError, match="no such folder, and the hub did not give it as a repository"):
        VisionTransformer3D.from_pretrained(name)


def test_a_hub_out_of_reach_is_said(monkeypatch):
    def fetch(*args, **how):
        raise LocalEntryNotFoundError("cannot be reached\nmore")

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    with pytest.raises(WeightsError, match=r"LocalEntryNotFoundError: cannot be reached\)\. Name"):
        VisionTransformer3D.from_pretrained("owner/name")


@pytest.fixture
def uploads(monkeypatch):
    done = []

    class Api:
        def __init__(self, token=None):
            done.append({"token": token})

        def create_repo(self, repo_id, private, exist_ok):
            done[-1].update(private=private)
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **how):
            done[-1].update(repo_id=repo_id, files=contents(Path(folder_path)), message=how["commit_message"])
            return "https://address"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    return done


def test_push_to_hub_uploads_what_save_pretrained_writes(saved, tmp_path, uploads):
    net, folder = saved
    net.save_pretrained(tmp_path / "licensed", license="mit", tags=("a",))
    said = net.push_to_hub("owner/name", license="mit", tags=("a",), private=True, token="t", commit_message="new")
    assert said == "https://address"
    want = {"token": "t", "private": True, "repo_id": "owner/name", "message": "new"}
    assert uploads == [{**want, "files": contents(tmp_path / "licensed")}]
    assert net.save_pretrained(folder, push_to_hub=True, license="mit") == "https://address"
    assert uploads[1]["repo_id"] == "net"
    assert b"license: mit" in uploads[1]["files"]["README.md"]


# the mixin costs nothing else


@pytest.mark.slow
def test_the_mixin_leaves_the_network_as_it_was(saved):
    net, _ = saved
    assert isinstance(net, ModelHubMixin)
    assert not any("hub" in name for name in vars(net))
    x = volume(net)
    scripted = torch.jit.script(net)
    exported = torch.export.export(net, (x,)).module()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), scripted, exported):
        torch.testing.assert_close(other(x), net(x))
    small = timm.create_model("vit3d_tiny", img_size=16, depth=1)
    assert (type(small), small.embed_dim) == (VisionTransformer3D, 192)
    assert "from_pretrained" not in VisionTransformer3D.__dict__


@pytest.mark.slow
def test_networks_do_not_import_weights():
    # one without a spec only stands for a module that loads on demand
    loaded = "[name for name, m in sys.modules.items() if name.startswith('monai_vit3d.weights') and m.__spec__]"
    code = f"import sys, monai_vit3d.networks; print({loaded})"
    assert run_warm("-c", code) == (0, "[]\n")
