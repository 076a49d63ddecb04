"""Adapters in a file: the round trip, what the file holds, and refusals that leave the network as it was."""

import copy
import json

import pytest
import torch
from safetensors import safe_open

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.checkpoints import read_with_metadata, write_safetensors
from monai_vit3d.networks.lora import MergedState, apply_lora, merge_lora
from monai_vit3d.weights import load_backbone, save_backbone, start_network
from monai_vit3d.weights.adapters import load_adapter, save_adapter
from tests.weights.nets import classifier, network


def trained(net, rank=3, **options):
    """Adapters and whatever else learns, after two steps of training."""
    net = apply_lora(net, rank, **options).train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    x = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return net.eval()


def same(one, two):
    return list(one) == list(two) and all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.fixture
def file(tmp_path):
    save_adapter(trained(network()), tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def altered(file, state=None, **metadata):
    """The file with other tensors or another header, its sha256 made anew; None leaves an entry out."""
    old, said = read_with_metadata(file)
    said = {key: value for key, value in {**said, **metadata}.items() if value is not None}
    write_safetensors(old if state is None else state(old), said, file)
    return file


@pytest.mark.parametrize("make", [network, classifier])
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 5.0, "targets": "fc2", "dropout": 0.2}, {"trained": ("backbone.norm",)}, {"trained": ()}],
    ids=str,
)
def test_round_trip(make, options, tmp_path):
    net = trained(make(), **options)
    save_adapter(net, tmp_path / "a.safetensors")
    fresh = make()
    assert load_adapter(fresh, tmp_path / "a.safetensors") is fresh
    assert same(fresh.state_dict(), net.state_dict())  # running statistics, too
    assert fresh.lora == net.lora
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in net.parameters()]
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(fresh.eval()(x), net(x))
    assert same(merge_lora(fresh).state_dict(), merge_lora(net).state_dict())


def test_the_file_holds_what_was_trained_and_says_how(file):
    net = apply_lora(network(), 3)
    learns = {name for name, p in net.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in net.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    with safe_open(file, framework="pt") as opened:
        keys, metadata = set(opened.keys()), opened.metadata()
    assert keys == {name.replace(".default.", ".") for name in learns} | buffers
    assert "backbone.blocks.0.attn.qkv.lora_A.weight" in keys
    said = {"rank": 3, "alpha": 3, "targets": ["qkv", "proj"], "dropout": 0.0, "trained": ["decoder"]}
    assert json.loads(metadata["lora"]) == said


def test_the_same_adapter_gives_the_same_bytes(file, tmp_path):
    again = load_adapter(network(), file)
    save_adapter(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("key", ["backbone.pos_embed", "backbone.blocks.1.attn.qkv.weight", "backbone.norm.bias"])
def test_other_frozen_weights(file, key):
    net = network()
    with torch.no_grad():
        net.get_parameter(key).view(-1)[-1] += 1e-6
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(WeightsError, match=r"adapter.safetensors: its adapters were trained on other frozen weights"):
        load_adapter(net, file)
    assert same(net.state_dict(), before)
    load_adapter(net, file, strict=False)
    assert same(merge_lora(net).state_dict(), before) is False


def test_other_weights_in_a_trained_part_are_none_of_its_business(file):
    net = network()
    with torch.no_grad():
        for parameter in net.decoder.parameters():
            parameter.add_(1.0)
    assert same(load_adapter(net, file).state_dict(), load_adapter(network(), file).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": None}, "no adapter's file, its header has no readable 'lora'"),
        ({"lora": "[]"}, "no adapter's file"),
        ({"lora": "{"}, "no adapter's file"),
        ({"lora": '{"rank": 3, "targets": ["qkv"], "trained": []}'}, "no adapter's file"),
        ({"lora": '{"rank": 0, "alpha": 1, "dropout": 0, "targets": ["qkv"], "trained": []}'}, "no adapter's file"),
        (
            {"lora": '{"rank": 3, "alpha": 1, "dropout": 0, "targets": ["wo"], "trained": []}'},
            r"adapters that do not fit TokenSegmenter: targets=\('wo',\)",
        ),
        (
            {"lora": '{"rank": 2, "alpha": 1, "dropout": 0, "targets": ["qkv", "proj"], "trained": ["decoder"]}'},
            r"lora_A.weight is \(3, 12\), expected \(2, 12\)",
        ),
        ({"state": lambda old: dict(list(old.items())[1:])}, "is missing"),
        ({"state": lambda old: {**old, "backbone.norm.weight": torch.zeros(12)}}, "backbone.norm.weight is not known"),
        ({"base_sha256": None}, "other frozen weights"),
    ],
)
def test_refused_files_change_nothing(file, change, message):
    net = network()
    with pytest.raises(WeightsError, match=f"adapter.safetensors: .*{message}"):
        load_adapter(net, altered(file, **change))
    assert same(net.state_dict(), network().state_dict())
    assert not hasattr(net, "lora")
    assert all(p.requires_grad for p in net.parameters())


def test_another_network(file):
    with pytest.raises(WeightsError, match="weights of another architecture than the adapters of TokenClassifier"):
        load_adapter(classifier(), file)
    with pytest.raises(WeightsError, match=r"lora_A.weight is \(3, 12\), expected \(3, 24\)"):
        load_adapter(network(embed_dim=24), file)


def test_a_damaged_file(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match="sha256"):
        load_adapter(network(), file)


def test_networks_with_and_without_adapters(file, tmp_path):
    with pytest.raises(UsageError, match="TokenSegmenter has no adapters to save: call apply_lora first"):
        save_adapter(network(), tmp_path / "b.safetensors")
    net = load_adapter(network(), file)
    with pytest.raises(UsageError, match="TokenSegmenter has adapters already"):
        load_adapter(net, file)
    with pytest.raises(UsageError, match="has no adapters to save"):
        save_adapter(merge_lora(net), tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_networks_dtype_is_kept(file, dtype):
    net = load_adapter(network().to(dtype), file, strict=False)
    kept = {p.dtype for name, p in net.named_parameters() if ".lora_" not in name}
    assert kept == {dtype}


# whole networks' own files


def test_files_of_networks_with_adapters_hold_them_merged(tmp_path):
    net = trained(network())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    wanted = {key: value for key, value in MergedState(net).state_dict().items() if key.startswith("backbone.")}
    save_backbone(net.backbone, tmp_path / "encoder.safetensors")
    net.backbone.save_pretrained(tmp_path / "net")
    for again in (
        VisionTransformer3D.from_pretrained(tmp_path / "net"),
        load_backbone(network(1), tmp_path / "encoder.safetensors").backbone,
    ):
        assert same({f"backbone.{key}": value for key, value in again.state_dict().items()}, wanted)
        x = torch.randn(1, 1, 8, 8, 8)
        torch.testing.assert_close(again(x), net.backbone(x))
        assert not torch.allclose(again(x), network().backbone(x))
    assert same(net.state_dict(), before)  # it goes on training
    assert all(
        ".lora_" in key or not key.startswith("backbone") for key, p in net.named_parameters() if p.requires_grad
    )


def test_what_training_starts_from(tmp_path):
    save_backbone(network(1).backbone, tmp_path / "encoder.safetensors")
    net = network()
    assert start_network(net) is net
    assert same(net.state_dict(), network().state_dict())
    assert same(start_network(network(), tmp_path / "encoder.safetensors").backbone.state_dict(),
                network(1).backbone.state_dict())  # fmt: skip
    net = start_network(network(), tmp_path / "encoder.safetensors", 2)
    assert net.lora.rank == 2
    assert torch.equal(net.backbone.blocks[0].mlp.fc1.weight, network(1).backbone.blocks[0].mlp.fc1.weight)
    net = network()
    with pytest.raises(
        UsageError, match=r"lora_rank=2 without pretrained: .*Name the file .*, or leave lora_rank at 0"
    ):
        start_network(net, None, 2)
    assert same(net.state_dict(), network().state_dict())


def test_a_network_whose_adapters_were_merged_in_a_part_has_none_to_save(tmp_path):
    net = apply_lora(network(), 2)
    merge_lora(net.backbone)
    with pytest.raises(UsageError, match="has no adapters to save"):
        save_adapter(net, tmp_path / "a.safetensors")
