"""Loading takes a state dict of tensors that fits, and nothing else; a refusal leaves the network as it was."""

import math
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from monai_vit3d.data.errors import Vit3dError, WeightsError
from monai_vit3d.networks.checkpoints import is_ours, read_checkpoint, read_with_metadata, write_safetensors
from monai_vit3d.networks.meta_init import fill
from monai_vit3d.weights import create_model, load_backbone, load_weights, save_backbone
from tests.helpers import run_warm
from tests.weights.nets import FORMATS, Payload, network, stored

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
          torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]  # fmt: skip


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_numbers_of_numpy_beside_the_tensors_are_read(tmp_path):
    """As nnU-Net writes its losses."""
    numbers = [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True)]
    torch.save({"network_weights": {"a": torch.ones(2)}, "logging": {"ema": numbers}}, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt")["logging"]["ema"] == numbers
    for content in (np.ones(2), np.array([print], dtype=object)):
        torch.save({"a": content}, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="hold more than tensors"):
            read_checkpoint(tmp_path / "w.pt")


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
            r"backbone\.norm\.bias is \(7,\), expected \(12,\)\.",
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
        ({"embed_dim": 24}, r"backbone\.cls_token is \(1, 1, 24\), expected \(1, 1, 12\); .*more"),
        ({"reg_tokens": 2}, r"backbone\.pos_embed is \(1, 11, 12\), expected \(1, 9, 12\); .*reg_token is not known"),
        ({"class_token": False, "global_pool": ""}, r"backbone\.cls_token is missing"),
    ],
)
def test_another_architecture(net, tmp_path, options, message):
    torch.save(network(seed=1, **options).state_dict(), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights(net, tmp_path / "model.pt")


@pytest.mark.parametrize(("convert", "message"), [
    (lambda v: v.to(torch.int8), r"backbone\.norm\.weight is int8, expected float32"),
    (lambda v: v.to(torch.complex64), r"backbone\.norm\.weight is complex64, expected float32"),
    (lambda v: v > 0, r"backbone\.norm\.weight is bool, expected float32"),
], ids=["int8", "complex64", "bool"])  # fmt: skip
@pytest.mark.parametrize("load", [load_weights, load_backbone])
def test_other_kinds_of_numbers(net, tmp_path, convert, message, load):
    state = network(seed=1).state_dict()
    state["backbone.norm.weight"] = convert(state["backbone.norm.weight"])
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=message.removeprefix(r"backbone\." if load is load_backbone else "")):
        load(net, tmp_path / "model.pt")


def test_real_numbers_where_whole_ones_are_counted(net, tmp_path):
    state = network(seed=1).state_dict()
    key = next(key for key in state if key.endswith("num_batches_tracked"))
    torch.save({**state, key: state[key] + 0.5}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="num_batches_tracked is float32, expected int64"):
        load_weights(net, tmp_path / "model.pt")


def test_quantised_weights_are_no_filling():
    layer, state = nn.Linear(2, 3), nn.Linear(2, 3).state_dict()
    before = layer.weight.detach().clone()
    with pytest.raises(WeightsError, match="weight is int8, expected float32"):
        fill(layer, {**state, "weight": state["weight"].to(torch.int8)}, "cpu", owned=True)
    assert torch.equal(layer.weight, before)


def test_what_has_no_checksums_is_said(tmp_path, caplog):
    for how, said in (("legacy", True), ("zip", False)):
        caplog.clear()
        (tmp_path / "model.pt").write_bytes(stored(network().state_dict(), **FORMATS[how]))
        load_weights(network(), tmp_path / "model.pt")
        assert ("without checksums" in caplog.text) == said


def test_an_entry_beside_the_tensors_is_named(tmp_path):
    torch.save({**network().state_dict(), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"it also has 'epoch' \(int\)\. Take those entries out") as caught:
        load_weights(network(), tmp_path / "model.pt")
    assert "last.pt" not in str(caught.value)
    torch.save({"network": network().state_dict(), "loss": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"Save network\.state_dict\(\) alone"):
        load_weights(network(), tmp_path / "model.pt")


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


def test_another_projects_sha256_is_none_of_ours(net, tmp_path):
    path, source = tmp_path / "model.safetensors", network(seed=1).state_dict()
    save_file(source, path, {"sha256": "of the training's images"})
    state, metadata = read_with_metadata(path)
    assert torch.equal(state["backbone.norm.bias"], source["backbone.norm.bias"])
    assert not is_ours(metadata)
    save_backbone(network().backbone, path)
    assert is_ours(read_with_metadata(path)[1])


@pytest.mark.parametrize(("old", "new"), [
    (b'num_heads\\": 2', b'num_heads\\": 4'), (b'"norm.weight"', b'"norm.wEight"'), (b'"F16"', b'"I16"'),
    (b'"sha256"', b'"sha257"'), (b'"format":"pt"', b'"format":"pd"'),
], ids=str)  # fmt: skip
def test_an_altered_header(tmp_path, old, new):
    path = tmp_path / "encoder.safetensors"
    save_backbone(network().backbone.half(), path)
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new))
    for read in (read_checkpoint, lambda path: load_backbone(network().half(), path)):
        with pytest.raises(WeightsError, match=r"damaged, the sha256 of its header.* Fetch the file again\."):
            read(path)


def test_swapped_names(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_backbone(network().backbone, path)
    one, two, other = b'"blocks.0.norm1.weight"', b'"blocks.1.norm1.weight"', b'"blocks.x.norm1.weight"'
    path.write_bytes(path.read_bytes().replace(one, other).replace(two, one).replace(other, two))
    with pytest.raises(WeightsError, match="damaged, the sha256 of its header"):
        read_checkpoint(path)


def test_every_flipped_bit_of_the_header_is_refused_or_changes_nothing(tmp_path):
    path, choose = tmp_path / "some.safetensors", random.Random(0)
    state = {"one": torch.arange(6).half(), "two": torch.arange(3.0)}
    write_safetensors(state, {"model_args": '{"num_heads": 2}'}, path)
    whole, refused = path.read_bytes(), 0
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << choose.randrange(8)
        path.write_bytes(flipped)
        try:
            read, metadata = read_with_metadata(path)
        except WeightsError:
            refused += 1
            continue
        assert metadata["model_args"] == '{"num_heads": 2}'
        assert set(read) == set(state)
        for key, value in state.items():
            assert value.dtype is read[key].dtype
            assert torch.equal(value, read[key])
    assert refused > 300


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


# memory


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_what_was_read_is_no_map_of_the_file(tmp_path, suffix):
    path, state = tmp_path / f"w.{suffix}", {f"part{i}": torch.randn(300, 1000) for i in range(3)}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    before = path.read_bytes()
    read = read_checkpoint(path)
    maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    assert str(path) not in maps
    for value in read.values():
        value.add_(1)
    assert path.read_bytes() == before
    path.write_bytes(b"cut")
    assert all(torch.equal(value, state[key] + 1) for key, value in read.items())


def test_a_network_that_was_made_of_a_file_trains_without_it(tmp_path):
    path = tmp_path / "w.safetensors"
    save_backbone(create_model("vit3d_tiny", 16, 8, depth=1), path)
    before = path.read_bytes()
    net = create_model("vit3d_tiny", 16, 8, depth=1, pretrained=path)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    start = net.norm.weight.detach().clone()
    net(torch.randn(1, 1, 16, 16, 16)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.norm.weight, start)
    assert path.read_bytes() == before
    path.write_bytes(b"cut")
    trained = net(torch.ones(1, 1, 16, 16, 16))
    path.unlink()
    assert torch.equal(net(torch.ones(1, 1, 16, 16, 16)), trained)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
def test_every_type_and_shape_is_read_as_the_library_reads_it(tmp_path, parts):
    path = tmp_path / "w.safetensors"
    state = {str(i): torch.arange(math.prod(shape)).reshape(shape).to(dtype) for i, (dtype, shape) in enumerate(parts)}
    save_file(state, path)
    read, want = read_checkpoint(path), load_file(path)
    assert set(read) == set(want)
    for key, value in read.items():
        assert value.dtype == want[key].dtype
        assert torch.equal(value.reshape(-1).view(torch.uint8), want[key].reshape(-1).view(torch.uint8))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's peak is Linux's")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_weights_are_in_memory_once(tmp_path, suffix):
    options = {"embed_dim": 1024, "num_heads": 16, "depth": 8}
    path = tmp_path / f"w.{suffix}"
    net = create_model("vit3d_tiny", 16, 8, **options)
    save_backbone(net, path) if suffix == "safetensors" else torch.save(net.state_dict(), path)
    code = f"""
from monai_vit3d import create_model
from tests.helpers import kernel_bytes, new_peak
create_model("vit3d_tiny", 16, 8, depth=1)
start = new_peak()
net = create_model("vit3d_tiny", 16, 8, **{options}, pretrained={str(path)!r})
print(kernel_bytes("VmHWM") - start)
"""
    code, out = run_warm("-c", code)
    assert code == 0, out
    assert int(out.splitlines()[-1]) < 1.25 * path.stat().st_size  # 400 MB
