"""`vit3d info`: what a bundle is, what it needs, and whether it runs under --safe."""

import hashlib
import json
import shutil

import pytest

from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.cli import main
from monai_vit3d.data.errors import BundleError
from tests.helpers import BUNDLES
from tests.pipeline import zoo, zoo_minis

SHIPPED = ["hippocampus_segmentation", "medmnist3d_classification"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_bundle_runs_with_safe(name, capsys):
    bundle = BUNDLES / name
    lines = describe_bundle(bundle)
    about = json.loads((bundle / "configs" / "metadata.json").read_text())
    digest = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert lines["--safe"] == "runs"
    assert lines["weights"] == f"model.pt, SHA-256 {digest}"
    assert (lines["name"], lines["version"]) == (about["name"], about["version"])
    assert lines["use"] == about["intended_use"]
    assert ("predictions.csv" in lines["answer"]) == ("classification" in name)
    for label in about["network_data_format"]["outputs"]["pred"]["channel_def"].values():
        assert label in lines["names"]
    assert main(["info", str(bundle)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == list(lines)
    assert all(line.endswith(value) for line, value in zip(said, lines.values()))


@pytest.mark.slow
def test_a_zip_from_the_zoo(tmp_path):
    bundle = zoo.write_bundle(tmp_path / "spleen")
    plain = describe_bundle(bundle)
    archive = shutil.make_archive(str(tmp_path / "spleen"), "zip", bundle.parent, bundle.name)
    assert describe_bundle(archive) == plain
    assert plain["--safe"] == "runs"
    assert plain["names"] == "0 background, 1 spleen"
    assert plain["data"] == "unknown"


def test_what_safe_refuses_is_told_and_nothing_of_it_runs(tmp_path):
    trace = tmp_path / "trace"
    config = zoo.zoo_config()
    config["network"] = f"$open('{trace}', 'w') and @network_def"
    bundle = zoo.write_bundle(tmp_path / "bundle", config)
    lines = describe_bundle(bundle)
    assert lines["--safe"].startswith("refused: ")
    assert "network" in lines["--safe"]
    assert "\n" not in lines["--safe"]  # a value is a line
    assert not trace.exists()
    digest = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert lines["weights"] == f"model.pt, SHA-256 {digest}"


@pytest.mark.slow
def test_names_are_those_of_label_values_after_all_steps(tmp_path):
    """The zoo's BraTS steps turn masks of tumor core, whole tumor and enhancing tumor into the labels 1, 2 and 4."""
    bundle, _ = zoo_minis.write(tmp_path, "brats_mri_segmentation")
    lines = describe_bundle(bundle)
    assert lines["--safe"] == "runs"
    assert lines["names"] == (
        "1 Tumor core without Enhancing tumor, 2 Whole tumor without Tumor core, Enhancing tumor, 4 Enhancing tumor"
    )
    (bundle / "models" / "model.pt").unlink()
    assert describe_bundle(bundle)["names"] == lines["names"]


@pytest.mark.slow
def test_names_follow_what_is_set_in_the_config(tmp_path):
    bundle = zoo.write_bundle(tmp_path / "bundle")
    steps = zoo.zoo_config()["postprocessing"]["transforms"]
    mapped = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [0, 1], "target_labels": [0, 7]}
    overrides = {"postprocessing::transforms": [*steps[:-1], mapped, steps[-1]]}
    assert describe_bundle(bundle)["names"] == "0 background, 1 spleen"
    assert describe_bundle(bundle, overrides=overrides)["names"] == "0 background, 7 spleen"


@pytest.mark.slow
def test_names_that_cannot_be_followed_are_said_to_be_of_channels(tmp_path):
    about = zoo.metadata()
    del about["network_data_format"]["outputs"]["pred"]["num_channels"]
    said = "0 background, 1 spleen (channels of the network; label values may differ)"
    assert describe_bundle(zoo.write_bundle(tmp_path / "count", about=about))["names"] == said
    config = zoo.zoo_config()
    config["postprocessing"]["transforms"].insert(2, {"_target_": "Lambdad", "keys": "pred", "func": "$print"})
    assert describe_bundle(zoo.write_bundle(tmp_path / "unsafe", config))["names"] == said


def test_a_bundle_without_metadata(tmp_path):
    bundle = zoo.write_bundle(tmp_path / "bundle")
    (bundle / "configs" / "metadata.json").unlink()
    lines = describe_bundle(bundle)
    assert (lines["name"], lines["version"], lines["names"]) == ("bundle", "unknown", "unknown")
    assert lines["--safe"] == "runs"


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1"])
def test_a_bundle_is_described_before_its_weights_are_fetched(tmp_path, content):
    bundle = zoo.write_bundle(tmp_path / "bundle")
    path = bundle / "models" / "model.pt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    lines = describe_bundle(bundle)
    assert lines["weights"].startswith(f"cannot be used: {path}")
    assert lines["--safe"] == "runs, once there are weights"
    assert lines["name"] == "Toy spleen CT segmentation"


def test_no_bundle(tmp_path, capsys):
    with pytest.raises(BundleError, match=r"configs/inference\.json"):
        describe_bundle(tmp_path)
    assert main(["info", str(tmp_path)]) == 2
    assert main(["info", str(tmp_path / "gone")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
