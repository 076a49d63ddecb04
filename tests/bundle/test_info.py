"""`vit3d info` and `vit3d check`: what a bundle is, and what the strict reader says of files."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.cli import main
from monai_vit3d.data.errors import BundleError, UsageError
from monai_vit3d.pipeline.check import check_files
from tests.clinical import write_clinical_folder
from tests.helpers import BUNDLES
from tests.pipeline import zoo, zoo_minis

SHIPPED = ["hippocampus_segmentation", "medmnist3d_classification"]
VERDICTS = {"same": "good", "warned": "odd", "refused": "refused"}


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    return write_clinical_folder(tmp_path_factory.mktemp("clinical") / "folder")


# info


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
    assert not trace.exists()
    digest = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert lines["weights"] == f"model.pt, SHA-256 {digest}"


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


def test_names_follow_what_is_set_in_the_config(tmp_path):
    bundle = zoo.write_bundle(tmp_path / "bundle")
    steps = zoo.zoo_config()["postprocessing"]["transforms"]
    mapped = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [0, 1], "target_labels": [0, 7]}
    overrides = {"postprocessing::transforms": [*steps[:-1], mapped, steps[-1]]}
    assert describe_bundle(bundle)["names"] == "0 background, 1 spleen"
    assert describe_bundle(bundle, overrides=overrides)["names"] == "0 background, 7 spleen"


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


# check


def test_verdicts_are_those_of_the_specimens(specimens):
    # of one thing no command gets hold by its name: a folder is searched for files
    told = [one for one in specimens if one.name != "folder"]
    for specimen in told:
        found = check_files([specimen.path]) if specimen.path.exists() else check_files([specimen.path.parent])
        by_file = {one["file"]: one for one in found}
        one = by_file[str(specimen.path)]
        assert one["verdict"] == VERDICTS[specimen.verdict], specimen.name
        assert specimen.word in one["text"], specimen.name
        assert one["text"].startswith(str(specimen.path)), specimen.name
        if specimen.verdict == "refused":
            assert one["error"] == one["text"]
            continue
        assert tuple(one["shape"]) == specimen.shape
        spacing = np.linalg.norm(specimen.affine_mm[:3, :3], axis=0)
        np.testing.assert_allclose(one["spacing_mm"], spacing, atol=1e-3)
        assert bool(one["warnings"]) == (specimen.verdict == "warned")


def test_orientation_letters(specimens):
    turned = {one.name.removeprefix("axes "): one for one in specimens if one.name.startswith("axes ")}
    assert len(turned) == 48
    for letters, specimen in list(turned.items())[::5]:
        assert check_files([specimen.path])[0]["orientation"] == letters


def test_the_command_says_it_for_people_and_for_programs(specimens, capsys):
    by_verdict = {specimen.verdict: str(specimen.path) for specimen in specimens if specimen.path.is_file()}
    good, odd, refused = (by_verdict[verdict] for verdict in ("same", "warned", "refused"))
    assert main(["check", good, odd]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["good", f"{good}:"],
        ["odd", f"{odd}:"],
    ]
    assert main(["check", good, refused]) == 1
    assert capsys.readouterr().out.splitlines()[1].startswith(f"refused  {refused}: ")
    assert main(["check", "--json", good, odd, refused]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["file"], one["verdict"]) for one in found] == [(good, "good"), (odd, "odd"), (refused, "refused")]
    assert found == check_files([good, odd, refused])


def test_a_whole_folder_is_read(specimens):
    found = check_files([specimens[0].path.parent])
    assert {one["file"] for one in found} == {str(one.path) for one in specimens}
    assert {one["verdict"] for one in found} == {*VERDICTS.values(), "passed over"}
    (folder,) = (one for one in found if one["verdict"] == "passed over")
    assert folder["file"].endswith("/folder.nii.gz")
    assert folder["text"] == f"{folder['file']}: a folder with an image's name and nothing in it"


def test_nothing_to_check(tmp_path, capsys):
    with pytest.raises(UsageError, match="no such file"):
        check_files([tmp_path / "gone.nii"])
    assert main(["check", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_volume_of_4d_and_a_limit(tmp_path):
    import nibabel as nib

    path = tmp_path / "bold.nii.gz"
    nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32), np.eye(4)).to_filename(path)
    assert check_files([path])[0]["verdict"] == "refused"
    assert check_files([path], volume=2)[0]["shape"] == [4, 5, 6]
    assert check_files([path], volume=3)[0]["verdict"] == "refused"
    assert check_files([path], volume=0, max_voxels=100)[0]["verdict"] == "refused"
    assert main(["check", str(path)]) == 1
    assert main(["check", str(path), "--volume", "1"]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"network_data_format": None},
        {"network_data_format": {"inputs": {"image": {"num_channels": "one"}}}},
        {"network_data_format": {"outputs": {"pred": {"channel_def": ["background", "spleen"]}}}},
        ["not", "an", "object"],
    ],
)
def test_metadata_of_another_shape_is_refused_before_any_work(tmp_path, wrong, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.yaml").write_text("network: 1")
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(wrong))
    assert main(["info", str(tmp_path)]) == 2
    assert "metadata.json" in capsys.readouterr().err
