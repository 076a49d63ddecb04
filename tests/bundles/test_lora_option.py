"""The bundles' lora_rank: the encoder's weights stay, its adapters and the rest learn, what is saved is plain."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from monai_vit3d.networks.lora import merge_lora
from monai_vit3d.weights import save_backbone
from tests.bundles import balls as b
from tests.bundles.helpers import failure_here, run, run_here, torchrun
from tests.bundles.test_hippocampus import FLOAT32, SMALL
from tests.helpers import BUNDLES, HIPPOCAMPUS

ADAPTED = (".attn.qkv.weight", ".attn.proj.weight")


def encoder(bundle, path, options):
    """A fresh backbone of a bundle's network, in a file."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.yaml"))
    for key, value in options.items():
        parser[key] = str(value) if isinstance(value, Path) else value
    backbone = parser.get_parsed_content("network_def#backbone")
    save_backbone(backbone, path)
    return backbone.state_dict()


def changed(given, weights):
    """Names of the encoder's weights that are not those given."""
    found = {key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")}
    assert list(found) == list(given)
    return {key for key, value in given.items() if not torch.equal(found[key], value)}


def in_blocks(given):
    return {key for key in given if key.startswith("blocks.") and key.endswith(ADAPTED)}


@pytest.mark.slow
def test_segmentation_in_two_processes(phantom_task, tmp_path):
    data, split = phantom_task
    given = encoder(HIPPOCAMPUS, tmp_path / "encoder.safetensors", SMALL)
    options = {"epochs": 2, "val_interval": 1, "ema_decay": 0.5, "output_dir": tmp_path, "dataset_dir": data}
    options |= {"split_file": split, "pretrained": tmp_path / "encoder.safetensors", "lora_rank": 2, **SMALL}
    both = "['configs/train.yaml','configs/multi_gpu_train.yaml']"
    run(torchrun("run", config_file=both, **options), HIPPOCAMPUS)
    assert changed(given, torch.load(tmp_path / "model.pt", weights_only=True)) == in_blocks(given)
    last = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
    assert {tuple(v.shape) for k, v in last.items() if ".lora_A." in k} == {(2, 48)}
    assert all(torch.equal(last[f"backbone.{k}"], v) for k, v in given.items() if f"backbone.{k}" in last)
    model = {"ckpt_path": tmp_path / "model.pt", "output_dir": tmp_path / "out", "dataset_dir": data / "imagesTr"}
    run_here(HIPPOCAMPUS, "inference", **model, **FLOAT32)
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 12


@pytest.mark.slow
def test_classification(balls, tmp_path):
    options = {**b.of(balls), **b.QUICK, "output_dir": tmp_path, "pretrained": tmp_path / "encoder.safetensors"}
    given = encoder(b.BUNDLE, tmp_path / "encoder.safetensors", b.of(balls))
    run_here(b.BUNDLE, "train", epochs=1, lora_rank=3, **options)
    for name in ("best.pt", "model.pt"):  # as trained, and calibrated
        assert changed(given, b.load(tmp_path / name)) == in_blocks(given)
    run_here(b.BUNDLE, "train", epochs=1, lora_rank=3, **options)  # a finished run goes on from last.pt
    model = {"ckpt_path": tmp_path / "model.pt", "output_dir": tmp_path / "scores"}
    run_here(b.BUNDLE, "inference", "evaluate", **model, **b.of(balls))
    assert 0 <= b.read_metrics(tmp_path / "scores")["auc"] <= 1


@pytest.mark.parametrize("entry", ["network", "network#module"], ids=["one process", "torchrun"])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("bundle", ["hippocampus_segmentation", "medmnist3d_classification"])
def test_the_network_has_adapters_where_they_are_asked_for(bundle, rank, entry, balls, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "0")
    configs = ["train", "multi_gpu_train"] if "module" in entry else ["train"]
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / bundle / "configs" / f"{name}.yaml") for name in configs])
    options = SMALL if bundle.startswith("hippo") else b.of(balls)
    encoder(BUNDLES / bundle, tmp_path / "encoder.safetensors", options)
    options = {**options, "lora_rank": rank, "pretrained": tmp_path / "encoder.safetensors", "device": "cpu"}
    for key, value in options.items():
        parser[key] = str(value) if isinstance(value, Path) else value
    network = parser.get_parsed_content(entry)
    learns = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert any(".lora_" in name for name in learns) == (rank > 0)
    assert any(name.startswith("backbone.") and ".lora_" not in name for name in learns) == (rank == 0)
    assert any(not name.startswith("backbone.") for name in learns)
    if rank:
        merge_lora(network)


def test_adapters_need_an_encoder_that_was_trained(balls, tmp_path):
    said = failure_here(b.BUNDLE, "train", lora_rank=2, output_dir=tmp_path, **b.of(balls))
    assert "lora_rank=2 without pretrained" in said
    assert not list(tmp_path.glob("*.pt"))


def test_a_rank_that_cannot_be(balls, tmp_path):
    said = failure_here(b.BUNDLE, "train", lora_rank=-1, output_dir=tmp_path, **b.of(balls))
    assert "rank=-1; expected a whole number from 1" in said
