"""A file is read once: a network that was built from it is told from any other."""

import copy

import pytest
import torch
from torch import nn

from monai_vit3d.data.files import file_identity
from monai_vit3d.networks import FoldEnsemble
from monai_vit3d.weights import built_from, ensure_weights, network_from, save_backbone
from monai_vit3d.weights.built_from import is_built_from
from tests.pipeline.fold_bundle import segmenter


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"fold_{fold}.pt" for fold in range(2)]
    for fold, path in enumerate(paths):
        torch.save(segmenter(fold).state_dict(), path)
    return paths


@pytest.fixture
def read(monkeypatch):
    """Files that were read by ``ensure_weights``."""
    paths, load = [], built_from.load_weights
    monkeypatch.setattr(built_from, "load_weights", lambda network, path: paths.append(path) or load(network, path))
    return paths


def same(network, other):
    one, two = network.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("count", [1, 2])
def test_a_network_of_these_files_is_not_read_again(files, read, count):
    network = network_from(files[:count])
    assert ensure_weights(network.to("cpu").eval(), files[:count]) is network
    assert read == []


def test_a_backbone_of_another_size_was_built_from_its_file(tmp_path, read):
    save_backbone(segmenter(0).backbone, tmp_path / "encoder.safetensors")
    network = network_from(tmp_path / "encoder.safetensors", img_size=[24, 16, 8], global_pool="avg", fc_norm=False)
    assert ensure_weights(network, tmp_path / "encoder.safetensors") is network
    assert (network.img_size, read) == ((24, 16, 8), [])


def trained(network, files):
    with torch.no_grad():
        next(network.parameters()).add_(1)
    return network


def replaced(network, files):
    return network.load_state_dict(segmenter(5).state_dict(), assign=True) and network


def rewritten(network, files):
    torch.save(segmenter(0).state_dict(), files[0])
    return network


OTHERS = {
    "as initialised": lambda network, files: segmenter(7),
    "of another file": lambda network, files: network_from(files[1]),
    "trained since": trained,
    "replaced since": replaced,
    "a copy": lambda network, files: trained(copy.deepcopy(network), files),
    "file written since": rewritten,
}


@pytest.mark.parametrize("other", OTHERS)
def test_any_other_network_gets_the_files_weights(files, read, other):
    network = OTHERS[other](network_from(files[0]), files)
    assert ensure_weights(network, files[0]) is network
    assert read == [files[0]]
    assert same(network, segmenter(0))


def test_a_network_that_is_given_is_copied_for_each_of_several_files(files):
    network = segmenter(7)
    ensemble = ensure_weights(network, files, average="mean")
    assert isinstance(ensemble, FoldEnsemble)
    assert ensemble.average == "mean"
    assert same(ensemble, network_from(files))
    assert same(network, segmenter(7))


@torch.inference_mode()
def test_tensors_of_inference_mode(files, read):
    network = network_from(files[0])
    assert ensure_weights(network, files[0]) is network
    assert read == []


def test_what_no_file_identifies_is_not_built_from_it(tmp_path):
    assert not is_built_from(nn.Linear(2, 2), [file_identity(tmp_path / "none.pt")])
    assert not is_built_from(nn.Linear(2, 2), [])
