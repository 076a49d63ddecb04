"""Loading takes a state dict of tensors that fits, and nothing else; a refusal leaves the network as it was."""

import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from monai_vit3d.data.errors import Vit3dError, WeightsError
from monai_vit3d.weights import load_weights
from monai_vit3d.weights.files import read_checkpoint, read_with_metadata, write_safetensors
from tests.weights.nets import FORMATS, Payload, network, stored


@pytest.fixture
def net():
    """A network whose tensors no refusal may touch."""
    net = network()
    yield net
    for key, value in network().state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


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


# safetensors


@pytest.mark.parametrize("name", ["model.safetensors", "model.SAFETENSORS", "model.pt", "model"])
def test_safetensors_by_suffix_or_content(net, tmp_path, name):
    other, source = network(), network(seed=1).state_dict()
    save_file(source, tmp_path / name)
    load_weights(other, tmp_path / name)
    for key, value in source.items():
        assert torch.equal(other.state_dict()[key], value), key
    read = read_checkpoint(tmp_path / name)
    assert set(read) == set(source)
    save_file(source, tmp_path / name, {"sha256": "0" * 64})
    with pytest.raises(WeightsError, match=r"damaged, the sha256 of its tensors.* Fetch the file again\."):
        load_weights(net, tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\2" + b"\0" * 7 + b"{}", b"\2" + b"\0" * 7 + b"[]", b"PK\3\4" + b"x" * 99]
)
def test_what_is_not_safetensors(net, tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^{path}: not a readable safetensors file|is missing"):
        load_weights(net, path)


def test_written_safetensors_keep_views_and_shared_tensors(tmp_path):
    path, base = tmp_path / "new" / "some.safetensors", torch.arange(12.0).reshape(3, 4)
    state = {"whole": base, "turned": base.T, "row": base[1], "one": torch.tensor(3), "half": base.bfloat16()}
    write_safetensors(state, {"note": 'two\nlines, "quoted", ü'}, path)
    read, metadata = read_with_metadata(path)
    assert {key: value.dtype for key, value in read.items()} == {key: value.dtype for key, value in state.items()}
    assert all(torch.equal(read[key], value) for key, value in state.items())
    assert metadata["note"] == 'two\nlines, "quoted", ü'


def test_writing_that_fails_leaves_the_file_that_is_there(tmp_path, monkeypatch):
    path = tmp_path / "some.safetensors"
    write_safetensors({"some": torch.ones(3)}, {}, path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_safetensors({"some": torch.zeros(3)}, {}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
