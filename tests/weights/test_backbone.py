"""A backbone's own file is exact, checked, and refused where it does not fit; other files' backbones load too."""

import hashlib
import json
import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers import ConvStem3D, PatchEmbed3D
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D
from monai_vit3d.weights import embed_layer_of, load_backbone, save_backbone
from tests.weights.nets import FORMATS, Payload, classifier, network, stored

ODD = {"img_size": (8, 12, 16), "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}  # grid (2, 3, 4)


def vit(seed=0, **options):
    torch.manual_seed(seed)
    net = VisionTransformer3D(**{**ODD, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def equal(one, other):
    return set(one) == set(other) and all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def copied(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def refused(net, path, match):
    before = copied(net)
    with pytest.raises(WeightsError, match=match) as caught:
        load_backbone(net, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert equal(net.state_dict(), before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small backbone's file, and where its tensors begin."""
    path = tmp_path_factory.mktemp("whole") / "encoder.safetensors"
    save_backbone(small(1), path)
    content = path.read_bytes()
    return content, 8 + int.from_bytes(content[:8], "little")


def small(seed=0):
    return vit(seed, img_size=4, patch_size=4, embed_dim=6, depth=1, num_heads=1)


# save_backbone's file

OPTIONS = {
    "plain": {},
    "no prefix": {"class_token": False, "global_pool": "", "embed_layer": ConvStem3D},
    "registers": {"reg_tokens": 3, "no_embed_class": True, "pos_embed": "sincos", "qk_norm": True, "init_values": 0.1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_round_trip_is_exact(tmp_path, options, dtype):
    path, source, net = tmp_path / "new" / "encoder.safetensors", vit(1, **options).to(dtype), vit(**options).to(dtype)
    save_backbone(source, path)
    assert equal(load_file(path), source.state_dict())
    assert load_backbone(net, path) is net
    assert equal(net.state_dict(), source.state_dict())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_same_weights_same_bytes(tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(6)]
    for path in paths[:4]:  # the library alone orders its metadata anew each time
        save_backbone(vit(1), path)
    headed, wrapped = vit(1, num_classes=3), nn.Module.__new__(DistributedDataParallel)
    headed.load_state_dict({**headed.state_dict(), **vit(1).state_dict()})
    save_backbone(headed, paths[4])
    nn.Module.__init__(wrapped)  # no process group is needed to hold a module
    wrapped.module = vit(1)
    save_backbone(wrapped, paths[5])
    assert len({path.read_bytes() for path in paths}) == 1
    net = vit()
    wrapped.module = net
    assert load_backbone(wrapped, paths[0]) is wrapped
    assert equal(net.state_dict(), vit(1).state_dict())


def test_safetensors_itself_reads_the_file(tmp_path):
    path, source = tmp_path / "encoder.safetensors", vit(1, embed_layer=ConvStem3D, reg_tokens=2, num_classes=5)
    save_backbone(source, path)
    wanted = {key: value for key, value in source.state_dict().items() if key not in ("head.weight", "head.bias")}
    assert equal(load_file(path), wanted)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "model_args", "sha256", "sha256_header"}
    assert metadata["format"] == "pt"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    assert metadata["sha256"] == hashlib.sha256(content[start:]).hexdigest()
    assert json.loads(metadata["model_args"]) == {
        "class": "VisionTransformer3D", "patch_size": [4, 4, 4], "grid_size": [2, 3, 4], "in_chans": 1,
        "embed_dim": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0, "class_token": True, "reg_tokens": 2,
        "no_embed_class": False, "pos_embed": "learned", "embed_layer": "ConvStem3D", "block_fn": "Block",
        "attn_layer": "Attention", "mlp_layer": "Mlp", "act_layer": "GELU", "norm_eps": 1e-5,
        "img_size": [8, 12, 16], "qkv_bias": True, "proj_bias": True, "qk_norm": False, "scale_attn_norm": False,
        "scale_mlp_norm": False, "init_values": None, "pre_norm": False, "final_norm": True, "fc_norm": None,
        "global_pool": "cls_token", "pool_include_prefix": False, "dynamic_img_size": False, "dynamic_img_pad": False,
        "norm_layer": "LayerNorm", "rope": None, "block_options": {}, "mlp_options": {}, "act_options": {},
        "norm_options": {}, "embed_norm": None, "foreign": {}, "pos_trained": True,
    }  # fmt: skip


def test_only_backbones_are_saved_and_only_networks_with_one_loaded(tmp_path):
    with pytest.raises(UsageError, match=r"backbone is a TokenSegmenter; expected a VisionTransformer3D\. Give"):
        save_backbone(network(), tmp_path / "encoder.safetensors")
    assert list(tmp_path.iterdir()) == []
    save_backbone(vit(), tmp_path / "encoder.safetensors")
    with pytest.raises(UsageError, match="network is a Linear without a backbone; expected a VisionTransformer3D, or"):
        load_backbone(nn.Linear(2, 2), tmp_path / "encoder.safetensors")


@pytest.mark.slow
@given(data=st.data())
def test_a_flipped_byte_among_the_tensors_is_refused(whole, tmp_path_factory, data):
    content, start = whole
    place, change = data.draw(st.integers(start, len(content) - 1)), data.draw(st.integers(1, 255))
    flipped = bytearray(content)
    flipped[place] ^= change
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(flipped)
    refused(small(), path, "damaged, the sha256 of its tensors is not the one that its header has")


@pytest.mark.slow
@given(data=st.data())
def test_a_flipped_bit_of_the_header_is_refused_or_changes_no_weight(whole, tmp_path_factory, data):
    content, start = whole
    flipped, net = bytearray(content), small()
    flipped[data.draw(st.integers(0, start - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(flipped)
    try:
        load_backbone(net, path)
    except WeightsError:
        assert equal(net.state_dict(), small().state_dict())
    else:
        assert equal(net.state_dict(), small(1).state_dict())


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_cut_off_anywhere_is_refused(whole, tmp_path, name):
    (content, start), path = whole, tmp_path / name
    net, before = small(), small().state_dict()
    for length in [
        *range(0, 20),
        *range(20, start, 97),
        *range(start - 3, start + 4),
        *range(start, len(content), 211),
    ]:
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=f"^{path}: not a readable"):
            load_backbone(net, path)
    for more in (b"\0", content):
        path.write_bytes(content + more)
        with pytest.raises(WeightsError, match=f"^{path}: not a readable safetensors file"):
            load_backbone(net, path)
    assert equal(net.state_dict(), before)
    path.write_bytes(content)
    load_backbone(net, path)


@pytest.mark.parametrize(
    "said", ["[]", "{", '{"grid_size": 4}', '{"grid_size": [2, 3]}', '{"grid_size": [2, 3, -4]}', "[" * 100000]
)
def test_an_architecture_that_is_none_is_refused(tmp_path, said):
    save_file(vit(1).state_dict(), tmp_path / "encoder.safetensors", {"model_args": said})
    refused(vit(), tmp_path / "encoder.safetensors", "its header's 'model_args' cannot be read")


def test_positions_that_are_not_the_headers_are_refused(tmp_path):
    said = json.dumps({"grid_size": [3, 3, 4]})
    save_file(vit(1).state_dict(), tmp_path / "encoder.safetensors", {"model_args": said})
    refused(vit(), tmp_path / "encoder.safetensors", r"grid_size \(3, 3, 4\) has 36 patches, and 1 prefix tokens")


# grids


@pytest.mark.parametrize("size", [(4, 16, 12), (12, 16, 8), (16, 12, 8)], ids=str)  # the last: as many patches
@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 2}, {"no_embed_class": True}], ids=str)
def test_positions_of_another_grid_are_resampled(tmp_path, size, prefix, caplog):
    path, source, net = tmp_path / "encoder.safetensors", vit(1, **prefix), vit(img_size=size, **prefix)
    save_backbone(source, path)
    with caplog.at_level(logging.INFO, logger="monai_vit3d"):
        load_backbone(net, path)
    pos, wanted = source.pos_embed.detach(), source.state_dict()
    kept = pos.shape[1] - 24
    volume = pos[:, kept:].reshape(1, 2, 3, 4, 12).permute(0, 4, 1, 2, 3)
    volume = F.interpolate(volume, size=[n // 4 for n in size], mode="trilinear", align_corners=False)
    wanted["pos_embed"] = torch.cat([pos[:, :kept], volume.flatten(2).transpose(1, 2)], 1)
    assert equal(net.state_dict(), wanted)
    grid = tuple(n // 4 for n in size)
    said = f"loaded {len(wanted)} tensors of a backbone, positions resampled from grid (2, 3, 4) to {grid}"
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {said}"]


def test_nothing_is_said_of_positions_that_fit(tmp_path, caplog):
    save_backbone(vit(1), tmp_path / "encoder.safetensors")
    with caplog.at_level(logging.INFO, logger="monai_vit3d"):
        load_backbone(vit(), tmp_path / "encoder.safetensors")
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == ["loaded 30 tensors of a backbone"]


def test_fixed_positions_need_no_resampling(tmp_path):
    source, net = vit(1, pos_embed="sincos"), vit(img_size=16, pos_embed="sincos")
    save_backbone(source, tmp_path / "encoder.safetensors")
    load_backbone(net, tmp_path / "encoder.safetensors")
    assert equal(net.state_dict(), source.state_dict())
    assert torch.equal(net.pos_embed, vit(img_size=16, pos_embed="sincos").pos_embed)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12, 16), 16], ids=str)
@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": ""}], ids=str)
@pytest.mark.parametrize("no_embed_class", [False, True])
def test_learned_positions_start_from_fixed_ones(tmp_path, size, prefix, no_embed_class):
    """The network computes what the encoder computes on that grid."""
    path, source = tmp_path / "encoder.safetensors", vit(1, pos_embed="sincos", **prefix)
    save_backbone(source, path)
    net = load_backbone(vit(img_size=size, no_embed_class=no_embed_class, **prefix), path)
    source.set_input_size(size)
    x = torch.randn(1, source.in_chans, *source.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.forward_features(x), source.forward_features(x))
    assert net.pos_embed.requires_grad


def test_learned_positions_need_a_file_that_says_which_it_had(tmp_path):
    torch.save(dict(vit(1, pos_embed="sincos").state_dict()), tmp_path / "model.pt")  # without the record
    refused(vit(), tmp_path / "model.pt", r"no learned positions .* load the \.safetensors that save_backbone wrote")


def test_fixed_positions_do_not_start_from_learned_ones(tmp_path):
    save_backbone(vit(1), tmp_path / "encoder.safetensors")
    refused(vit(pos_embed="sincos"), tmp_path / "encoder.safetensors", "pos_embed='learned' came, expected 'sincos'")


@pytest.mark.parametrize("embed", [PatchEmbed3D, ConvStem3D])
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "wrapped.pt"])
def test_embedding_of_a_file(tmp_path, embed, suffix):
    net, path = vit(embed_layer=embed, in_chans=1, patch_size=4), tmp_path / f"encoder.{suffix}"
    if suffix == "safetensors":
        save_backbone(net, path)
    else:
        prefix = "backbone." if suffix == "wrapped.pt" else ""
        torch.save({prefix + key: value for key, value in net.state_dict().items()}, path)
    assert embed_layer_of(path) is embed
    if suffix == "safetensors":  # the names alone are read
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert embed_layer_of(path) is embed
        path.write_bytes(content[:-1])
        with pytest.raises(WeightsError, match="not a readable safetensors file"):
            embed_layer_of(path)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_positions_of_a_file_that_does_not_say_its_grid(tmp_path, kind):
    path, source = tmp_path / f"bare.{kind}", vit(1)
    bare = dict(source.state_dict())  # without the record of its arguments
    torch.save(bare, path) if kind == "pt" else save_file(bare, path)
    net = vit()
    load_backbone(net, path)
    assert equal(net.state_dict(), source.state_dict())
    net = vit(img_size=16)
    refused(net, path, r"pos_embed is \(1, 25, 12\), expected \(1, 65, 12\)\. The file does not say its patch grid")
    save_backbone(load_backbone(vit(), path), tmp_path / "encoder.safetensors")  # as the message says
    load_backbone(net, tmp_path / "encoder.safetensors")
    assert torch.equal(net.norm.weight, source.norm.weight)


def bundles_network(window, seed=0):
    """The hippocampus bundle's backbone, narrower."""
    torch.manual_seed(seed)
    options = {"embed_dim": 12, "depth": 4, "num_heads": 3, "class_token": False, "global_pool": ""}
    return VisionTransformer3D(window, 8, embed_layer=ConvStem3D, **options)


def test_segmenter_and_classifier_start_from_one_encoder(tmp_path):
    path, source = tmp_path / "encoder.safetensors", bundles_network((32, 48, 32), seed=1)
    save_backbone(source, path)
    segmenter = TokenSegmenter(bundles_network((32, 48, 32)), "unetr", 3, feature_size=2)
    grader = TokenClassifier(bundles_network(48), "linear", 3, out_indices=(1, 3))
    for net in (segmenter, grader):
        rest = {key: value for key, value in copied(net).items() if not key.startswith("backbone.")}
        load_backbone(net, path)
        assert equal({k: v for k, v in net.state_dict().items() if not k.startswith("backbone.")}, rest)
    assert equal(segmenter.backbone.state_dict(), source.state_dict())
    volume = source.pos_embed.detach().reshape(1, 4, 6, 4, 12).permute(0, 4, 1, 2, 3)
    volume = F.interpolate(volume, size=[6, 6, 6], mode="trilinear").flatten(2).transpose(1, 2)
    assert equal(grader.backbone.state_dict(), {**source.state_dict(), "pos_embed": volume})
    with torch.no_grad():
        assert segmenter(torch.zeros(1, 1, 32, 48, 32)).shape == (1, 3, 32, 48, 32)
        assert grader(torch.zeros(1, 1, 48, 48, 48)).shape == (1, 3)


# what does not fit


@pytest.mark.parametrize(
    ("saved", "needed", "message"),
    [
        ({"num_heads": 3}, {}, "num_heads=3 came, expected 2. Build the network with num_heads=3, or name weights"),
        ({"embed_dim": 24, "depth": 1}, {}, "embed_dim=24 came, expected 12; depth=1 came, expected 2."),
        (
            {"img_size": (8, 8, 8), "patch_size": (4, 2, 4), "embed_layer": ConvStem3D},
            {"embed_layer": ConvStem3D},
            "patch_size=[4, 2, 4] came, expected [4, 4, 4].",
        ),
        ({"embed_layer": ConvStem3D}, {}, "embed_layer='ConvStem3D' came, expected 'PatchEmbed3D'."),
        ({"pos_embed": "sincos"}, {"pos_embed": "none"}, "pos_embed='sincos' came, expected 'none'."),
        ({"no_embed_class": True}, {}, "no_embed_class=True came, expected False."),
        ({"act_layer": "silu"}, {}, "act_layer='SiLU' came, expected 'GELU'."),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-6)}, {}, "norm_eps=1e-06 came, expected 1e-05."),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(sorted(value)),
)
def test_what_no_shape_shows_is_refused(tmp_path, saved, needed, message):
    save_backbone(vit(1, **saved), tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_backbone(vit(**needed), tmp_path / "encoder.safetensors")
    assert message in str(caught.value)
    refused(vit(**needed), tmp_path / "encoder.safetensors", "a backbone of another architecture: ")


def test_options_that_change_nothing_are_no_difference(tmp_path):
    bare = {"class_token": False, "global_pool": ""}
    source, net = vit(1, no_embed_class=True, mlp_ratio=4.01, **bare), vit(**bare)  # no class, no wider MLP
    save_backbone(source, tmp_path / "encoder.safetensors")
    load_backbone(net, tmp_path / "encoder.safetensors")
    assert equal(net.state_dict(), source.state_dict())


@pytest.mark.parametrize("pool", ["cls_token", "map"])
def test_heads_stay(tmp_path, pool):
    path, source, net = tmp_path / "headed.pt", vit(1, num_classes=5, global_pool=pool), vit(num_classes=3)
    own = {key: value for key, value in copied(net).items() if key.startswith("head.")}
    torch.save(source.state_dict(), path)
    load_backbone(net, path)
    plain = vit()
    load_backbone(plain, path)
    assert equal(net.state_dict(), {**plain.state_dict(), **own})
    assert torch.equal(net.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    save_backbone(source, tmp_path / "encoder.safetensors")
    again = vit(num_classes=3, global_pool="map")
    kept = {key: value for key, value in copied(again).items() if key.startswith(("head.", "attn_pool."))}
    load_backbone(again, tmp_path / "encoder.safetensors")
    assert equal(again.state_dict(), {**plain.state_dict(), **kept})


@pytest.mark.parametrize("how", ["pt", "safetensors"])
def test_a_bare_backbone_for_a_network(tmp_path, how):
    path, source, net = tmp_path / "bare", network(seed=1).backbone, classifier()
    torch.save(source.state_dict(), path) if how == "pt" else save_file(source.state_dict(), path)
    load_backbone(net, path)
    assert equal(net.backbone.state_dict(), source.state_dict())


# from the weights of other networks


def assert_unchanged(net):
    for key, value in classifier().state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("freeze", [None, "backbone"])
def test_segmenters_backbone_for_a_classifier(tmp_path, how, freeze):
    path, net, source = tmp_path / "model.pt", classifier(freeze=freeze), network(seed=1)
    path.write_bytes(stored(source.state_dict(), **FORMATS[how]))
    trainable = [p.requires_grad for p in net.parameters()]
    assert load_backbone(net, path) is net
    for key, value in net.backbone.state_dict().items():
        assert torch.equal(value, source.backbone.state_dict()[key]), key
    for key, value in net.head.state_dict().items():
        assert torch.equal(value, classifier().head.state_dict()[key]), key
    assert [p.requires_grad for p in net.parameters()] == trainable
    x = torch.randn(2, 1, 8, 8, 8)
    levels = source.backbone.forward_intermediates(x, [0, 1], norm=True, intermediates_only=True)
    assert torch.equal(net(x), net.head(levels))


@pytest.mark.slow
def test_classifiers_backbone_for_a_segmenter(tmp_path):
    net, source = network(), classifier(seed=1)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    load_backbone(net, tmp_path / "model.pt")
    wanted = {f"backbone.{key}": value for key, value in source.backbone.state_dict().items()}
    for key, value in net.state_dict().items():
        assert torch.equal(value, wanted.get(key, network().state_dict()[key])), key


@pytest.mark.parametrize(
    "choose",
    [
        lambda s: {k: v for k, v in s.items() if not k.startswith("backbone.")},
        lambda s: {f"average.{k}": v for k, v in s.items()},
        lambda s: {},
    ],
    ids=["no backbone", "another prefix", "nothing"],
)
def test_file_without_a_backbone(tmp_path, choose):
    path, net = tmp_path / "model.pt", classifier()
    torch.save(choose(network(seed=1).state_dict()), path)
    said = rf"^{path}: no entry begins with 'backbone\.' or 'patch_embed\.'; expected weights of a network with"
    with pytest.raises(WeightsError, match=said):
        load_backbone(net, path)
    assert_unchanged(net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 24}, r"than VisionTransformer3D: cls_token is \(1, 1, 24\), expected \(1, 1, 12\); .*more"),
        ({"reg_tokens": 2}, r"pos_embed is \(1, 11, 12\), expected \(1, 9, 12\); reg_token is not known"),
        ({"class_token": False, "global_pool": ""}, r"pos_embed is \(1, 8, 12\).*cls_token is missing"),
    ],
)
def test_backbone_of_another_architecture(tmp_path, options, message):
    path, net = tmp_path / "model.pt", classifier()
    torch.save(dict(network(seed=1, **options).state_dict()), path)
    with pytest.raises(WeightsError, match=message):
        load_backbone(net, path)
    assert_unchanged(net)
    key, value = next(iter(options.items()))
    torch.save(network(seed=1, **options).state_dict(), path)  # which records its arguments
    with pytest.raises(WeightsError, match=rf"another architecture: {key}={value} came, .* with {key}={value}"):
        load_backbone(net, path)
    assert_unchanged(net)


def test_backbone_of_a_deeper_network(tmp_path):
    path, net = tmp_path / "model.pt", classifier(out_indices=(0,))  # the block behind its last tap is gone
    torch.save(dict(network(seed=1).state_dict()), path)
    with pytest.raises(WeightsError, match=r"blocks\.1\.norm1\.weight is not known; .*more"):
        load_backbone(net, path)


def test_backbones_file_is_read_as_carefully(tmp_path):
    path, trap, net = tmp_path / "model.pt", tmp_path / "ran", classifier()
    with pytest.raises(WeightsError, match=f"^{path}: no such file"):
        load_backbone(net, path)
    torch.save({**network(seed=1).state_dict(), "extra": Payload(trap)}, path)
    with pytest.raises(WeightsError, match="never loaded"):
        load_backbone(net, path)
    assert not trap.exists()
    torch.save({"model": network(seed=1).state_dict()}, path)
    with pytest.raises(WeightsError, match="not a state dict of tensors"):
        load_backbone(net, path)
    assert_unchanged(net)
