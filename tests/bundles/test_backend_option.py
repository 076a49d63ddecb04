"""The bundles' option ``backend``: PyTorch's answers to the last bit, OpenVINO's beside them, the command's own."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.inferers import BackendNetwork
from monai_vit3d.pipeline.acceleration import accelerate
from tests.bundles.balls import BUNDLE as CLASSIFICATION
from tests.bundles.balls import gland, read_csv
from tests.bundles.helpers import command, run, run_here
from tests.helpers import BUNDLES, HIPPOCAMPUS

NAMES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/inference.yaml"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Exported models of a test are its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "monai_vit3d"


def kept(cache):
    """Kept models, and of each how many engines were compared with PyTorch."""
    return [len(list(place.glob("checked-*"))) for place in cache.iterdir()] if cache.exists() else []


@pytest.mark.slow
@pytest.mark.data
def test_segmentation_by_monais_command(decathlon_hippocampus, tmp_path, cache):
    (tmp_path / "in").mkdir()
    shutil.copy(decathlon_hippocampus / "imagesTr" / "hippocampus_001.nii.gz", tmp_path / "in")
    labels = {}
    for name, options in {
        "bare": {"evaluator#network": "@network"},
        "torch": {"backend": "torch"},
        "openvino": {"backend": "openvino"},
    }.items():
        folders = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / name}
        run(command("run", config_file="configs/inference.yaml", **folders, **options), HIPPOCAMPUS)
        labels[name] = np.asarray(nib.load(tmp_path / name / "hippocampus_001_seg.nii.gz").dataobj)
        assert kept(cache) == ([1] if name == "openvino" else [])
    assert set(np.unique(labels["bare"])) == {0, 1, 2}
    np.testing.assert_array_equal(labels["torch"], labels["bare"])
    assert (labels["openvino"] == labels["bare"]).mean() >= 0.999


@pytest.mark.slow
def test_classification_takes_each_batch(tmp_path, cache):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(5):  # batches of 4 and of 1
        voxels = gland(np.zeros((36, 50, 34), np.uint8), rng.integers(1, 9, 3))
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "in" / f"{i}.nii.gz")
    rows = {}
    for name, options in {
        "bare": {"evaluator#network": "@network"},
        "torch": {"backend": "torch"},
        "openvino": {"backend": "openvino"},
    }.items():
        folders = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / name}
        run_here(CLASSIFICATION, "inference", device=torch.device("cpu"), **folders, **options)
        rows[name] = read_csv(tmp_path / name / "predictions.csv")
        assert kept(cache) == ([2] if name == "openvino" else [])
    assert len(rows["bare"]) == 5
    assert rows["torch"] == rows["bare"]
    for found, expected in zip(rows["openvino"], rows["bare"]):
        assert found["prediction"] == expected["prediction"]
        numbers = [key for key in expected if key.startswith("probability_")]
        assert [float(found[k]) for k in numbers] == pytest.approx([float(expected[k]) for k in numbers], abs=1e-4)


def test_what_the_network_looked_at_is_told_of_the_network_itself(tmp_path):
    (tmp_path / "in").mkdir()
    voxels = np.zeros((36, 50, 34), np.uint8)  # the mask of a structure
    voxels[10:26, 15:35, 12:22] = 1
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "in" / "scan.nii.gz")
    options = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "backend": "openvino"}
    run_here(CLASSIFICATION, "inference", "explain", **options)
    assert nib.load(tmp_path / "out" / "scan_rollout.nii.gz").shape == voxels.shape


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_has_the_option(name):
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / name / "configs" / "inference.yaml"))
    assert parser["backend"] == "torch"
    assert parser["evaluator#network"] == "@runner"
    weights = torch.nn.Conv3d(1, 1, 1)
    parser["network"] = weights
    for backend in ("torch", "openvino"):
        parser["backend"] = backend
        parser.parse()
        runner = parser.get_parsed_content("runner")
        assert isinstance(runner, BackendNetwork)
        assert (runner.backend, runner.network) == (backend, weights)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "said"), [(HIPPOCAMPUS.name, "openvino"), (CLASSIFICATION.name, "torch")])
def test_the_command_has_its_own(name, said, tmp_path):
    """Whatever the bundle says: its network is loaded bare, and wrapped once where the command is told to."""
    shutil.copytree(BUNDLES / name, tmp_path / name)
    config = tmp_path / name / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("\nbackend: torch ", f"\nbackend: {said} "))
    bundle = load_bundle(tmp_path / name, "cpu", safe=True)
    assert not isinstance(bundle.network, BackendNetwork)
    assert accelerate(bundle, "torch") is bundle
    wrapped = accelerate(bundle, "openvino").network
    assert isinstance(wrapped, BackendNetwork)
    assert wrapped.network is bundle.network
