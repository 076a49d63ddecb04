"""Loading takes a state dict of tensors that fits, and nothing else; a refusal leaves the network as it was."""

import io
import os
import pickle
import random

import pytest
import torch
from torch import nn

from monai_vit3d.data.errors import Vit3dError, WeightsError
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D
from monai_vit3d.weights import load_backbone, load_weights


def network(seed=0, embed_dim=12, **options):
    torch.manual_seed(seed)
    vit = VisionTransformer3D(8, 4, embed_dim=embed_dim, depth=2, num_heads=2, **options)
    return TokenSegmenter(vit, "unetr", 2, feature_size=2, norm_name="batch").eval()


@pytest.fixture
def net():
    """A network whose tensors no refusal may touch."""
    net = network()
    yield net
    for key, value in network().state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def stored(state, **how):
    buffer = io.BytesIO()
    torch.save(state, buffer, **how)
    return buffer.getvalue()


FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path], ids=["str", "fspath", "Path"])
def test_round_trip(tmp_path, how, kind):
    path, net, source = tmp_path / "model.pt", network(), network(seed=1)
    path.write_bytes(stored(source.state_dict(), **FORMATS[how]))
    assert load_weights(net, kind(path)) is net
    for key, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(net(x), source(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_network_keeps_its_dtype(tmp_path, dtype):
    net, state = network(), network(seed=1).to(dtype).state_dict()
    torch.save(state, tmp_path / "model.pt")
    load_weights(net, tmp_path / "model.pt")
    for key, value in net.state_dict().items():
        assert value.dtype is (torch.long if key.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, state[key].to(value.dtype))


def test_missing_file(net, tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(WeightsError, match=f"^{path}: no such file"):
            load_weights(net, path)
    assert issubclass(WeightsError, Vit3dError)


@pytest.mark.parametrize("how", FORMATS)
def test_truncated_anywhere(net, tmp_path, how):
    path, whole = tmp_path / "model.pt", stored(network(seed=1).state_dict(), **FORMATS[how])
    seen = set()
    for length in [*range(0, 400), *range(400, len(whole), 499)]:
        path.write_bytes(whole[:length])
        try:
            load_weights(net, path)
            seen.add("loaded")
        except Exception as error:  # whatever it is, it is named below
            seen.add((type(error), "not a readable state dict" in str(error)))
    assert seen == {(WeightsError, True)}


@pytest.mark.parametrize("how", FORMATS)
def test_flipped_bits_raise_nothing_else(tmp_path, how):
    path, whole = tmp_path / "model.pt", stored(nn.Linear(2, 3).state_dict(), **FORMATS[how])
    choose, refused = random.Random(0), set()
    for _ in range(400):
        flipped = bytearray(whole)
        flipped[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        path.write_bytes(flipped)
        try:
            load_weights(nn.Linear(2, 3), path)
        except Exception as error:  # whatever it is, it is named below
            refused.add(type(error))
    assert refused == {WeightsError}


def test_flipped_bit_in_a_tensor(tmp_path):
    path, state = tmp_path / "model.pt", network(seed=1).state_dict()
    whole = bytearray(stored(state))
    whole[whole.index(state["backbone.cls_token"].numpy().tobytes()) + 3] ^= 1  # an exponent; the archive has CRC-32s
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match=f"^{path}: damaged, the checksum of"):
        load_weights(network(), path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"<!DOCTYPE html><html>404 Not Found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n",
        b"Git LFS pointer",
        b'{"_target_": "monai_vit3d.networks.TokenSegmenter"}',
        b"Model weights of the hippocampus task\n",
        b"\x1f\x8b\x08\x00compressed",
        b"sha256",
        b"\x80\x04.",
    ],
)
def test_text_and_other_files(net, tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{path}: not a readable state dict"):
        load_weights(net, path)


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", [*FORMATS, "pickle"])
@pytest.mark.parametrize("place", ["alone", "beside the tensors"])
def test_code_is_not_run(net, tmp_path, how, place):
    trap, path = tmp_path / "ran", tmp_path / "model.pt"
    found = Payload(trap) if place == "alone" else {**network(seed=1).state_dict(), "extra": Payload(trap)}
    path.write_bytes(pickle.dumps(found) if how == "pickle" else stored(found, **FORMATS[how]))
    with pytest.raises(WeightsError, match="never loaded"):
        load_weights(net, path)
    assert not trap.exists()
    pickle.loads(path.read_bytes()) if how == "pickle" else torch.load(path, weights_only=False)
    assert trap.exists()  # the trap was live


@pytest.mark.parametrize(
    "wrap", [lambda s: [s], lambda s: {"model": s}, lambda s: {**s, "epoch": 3}, lambda s: s["backbone.norm.bias"]]
)
def test_what_is_no_state_dict(net, tmp_path, wrap):
    torch.save(wrap(network(seed=1).state_dict()), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="not a state dict of tensors"):
        load_weights(net, tmp_path / "model.pt")


def test_whole_network_refused(net, tmp_path):
    torch.save(network(seed=1), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="never loaded"):
        load_weights(net, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("backbone.norm.bias"), r"TokenSegmenter: backbone\.norm\.bias is missing\."),
        (lambda s: s.update(new=torch.ones(1)), r"TokenSegmenter: new is not known\."),
        (
            lambda s: s.update({"backbone.norm.bias": torch.ones(7)}),
            r"backbone\.norm\.bias is \(7,\), \(12,\) is needed\.",
        ),
        (lambda s: s.clear(), r"is missing; and \d+ more\."),
    ],
)
def test_other_keys_and_shapes(net, tmp_path, edit, message):
    state = network(seed=1).state_dict()
    edit(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights(net, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 24}, r"backbone\.cls_token is \(1, 1, 24\), \(1, 1, 12\) is needed; .*more"),
        ({"reg_tokens": 2}, r"backbone\.pos_embed is \(1, 11, 12\), \(1, 9, 12\) is needed; .*reg_token is not known"),
        ({"class_token": False, "global_pool": ""}, r"backbone\.cls_token is missing"),
    ],
)
def test_another_architecture(net, tmp_path, options, message):
    torch.save(network(seed=1, **options).state_dict(), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights(net, tmp_path / "model.pt")


# the backbone of another network


def classifier(seed=0, **options):
    torch.manual_seed(seed)
    vit = VisionTransformer3D(8, 4, embed_dim=12, depth=2, num_heads=2)
    return TokenClassifier(vit, "attentive", 3, **options).eval()


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
        lambda s: {k.removeprefix("backbone."): v for k, v in s.items() if k.startswith("backbone.")},
        lambda s: {k: v for k, v in s.items() if not k.startswith("backbone.")},
        lambda s: {f"average.{k}": v for k, v in s.items()},
        lambda s: {},
    ],
    ids=["the backbone itself", "no backbone", "another prefix", "nothing"],
)
def test_file_without_a_backbone(tmp_path, choose):
    path, net = tmp_path / "model.pt", classifier()
    torch.save(choose(network(seed=1).state_dict()), path)
    with pytest.raises(WeightsError, match=rf"^{path}: no entry begins with 'backbone\.'\. Weights of a network with"):
        load_backbone(net, path)
    assert_unchanged(net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 24}, r"than VisionTransformer3D: cls_token is \(1, 1, 24\), \(1, 1, 12\) is needed; .*more"),
        ({"reg_tokens": 2}, r"pos_embed is \(1, 11, 12\), \(1, 9, 12\) is needed; reg_token is not known"),
        ({"class_token": False, "global_pool": ""}, r"pos_embed is \(1, 8, 12\).*cls_token is missing"),
    ],
)
def test_backbone_of_another_architecture(tmp_path, options, message):
    path, net = tmp_path / "model.pt", classifier()
    torch.save(network(seed=1, **options).state_dict(), path)
    with pytest.raises(WeightsError, match=message):
        load_backbone(net, path)
    assert_unchanged(net)


def test_backbone_of_a_deeper_network(tmp_path):
    path, net = tmp_path / "model.pt", classifier(taps=(0,))  # the block behind its last tap is gone
    torch.save(network(seed=1).state_dict(), path)
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
