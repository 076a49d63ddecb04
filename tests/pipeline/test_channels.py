"""Prediction of several channels and of several folds, by the command, in Python and by `monai.bundle run`."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run

from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.cli import main
from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.data.in_memory import volumes_from
from monai_vit3d.networks import FoldEnsemble
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.pipeline.predictor import Predictor
from tests.pipeline import zoo
from tests.pipeline.fold_bundle import segmenter, write_case, write_fold_bundle
from tests.pipeline.reference import ARGMAX, LOAD, ORIENT, SPACING, TYPED, invert, monai_labels, several, write_bundle
from tests.pipeline.tiny import records, statuses

CPU = {"device": "cpu", "safe": True}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_fold_bundle(tmp_path_factory.mktemp("bundle") / "mine")


def predict(given, out, bundle, *flags):
    words = ["predict", given, "-o", out, "--bundle", bundle, "--device", "cpu", "--safe", *flags]
    return main([*map(str, words)])


def labels_in(out, name):
    return np.asarray(nib.load(out / f"{name}_seg.nii.gz").dataobj)


def error_of(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_files_and_4d_files_are_cases_as_monai_runs_them(bundle, tmp_path, capsys):
    write_case(tmp_path / "in", "a", seed=1)
    write_case(tmp_path / "in" / "deep", "b", seed=2, as_4d=True)
    assert predict(tmp_path / "in", tmp_path / "out", bundle) == 0
    options = {"logging_file": False, "bundle_root": str(bundle), "device": "$torch.device('cpu')"}
    folders = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "monai")}
    run(
        config_file=str(bundle / "configs" / "inference.yaml"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        **options,
        **folders,
    )
    for name, theirs in (("a", "a_0000"), ("deep/b", "deep/b")):
        labels = labels_in(tmp_path / "out", name)
        assert several(labels)
        np.testing.assert_array_equal(labels, labels_in(tmp_path / "monai", theirs))
    assert sorted(statuses(tmp_path / "out")) == ["a", "deep/b"]
    # both spellings of one case have one answer
    write_case(tmp_path / "as4d", "a", seed=1, as_4d=True)
    assert predict(tmp_path / "as4d", tmp_path / "again", bundle) == 0
    np.testing.assert_array_equal(labels_in(tmp_path / "again", "a"), labels_in(tmp_path / "out", "a"))


@pytest.mark.slow
def test_each_channel_is_seen(bundle, tmp_path):
    first, second = write_case(tmp_path, "a")
    predictor = Predictor(bundle, **CPU)
    images = [nib.load(first), nib.load(second)]
    right = predictor.predict(images).get_fdata()
    assert (right != predictor.predict(images[::-1]).get_fdata()).any()
    assert (right != predictor.predict([images[0], images[0]]).get_fdata()).any()


@pytest.mark.slow
def test_a_4d_image_in_memory_is_its_channels(bundle, tmp_path):
    paths = write_case(tmp_path, "a", seed=1)
    (whole,) = write_case(tmp_path / "whole", "a", seed=1, as_4d=True)
    predictor = Predictor(bundle, **CPU)
    labels = predictor.predict(nib.load(whole))
    assert labels.shape == nib.load(whole).shape[:3]
    np.testing.assert_array_equal(labels.get_fdata(), predictor.predict([nib.load(p) for p in paths]).get_fdata())


@pytest.mark.slow
def test_files_given_one_by_one_and_by_a_list(bundle, tmp_path):
    paths = write_case(tmp_path / "in", "a")
    (tmp_path / "list.json").write_text(json.dumps([{"image": [str(path) for path in paths], "name": "a"}]))
    predict_folder(paths[::-1], tmp_path / "files", bundle, **CPU)
    predict_folder(tmp_path / "list.json", tmp_path / "list", bundle, **CPU)
    np.testing.assert_array_equal(labels_in(tmp_path / "files", "a"), labels_in(tmp_path / "list", "a"))


@pytest.mark.slow
def test_a_missing_channel_fails_its_case_by_name(bundle, tmp_path, capsys):
    write_case(tmp_path / "in", "a")
    _, second = write_case(tmp_path / "in", "b")
    second.unlink()
    assert predict(tmp_path / "in", tmp_path / "out", bundle, "--dry-run") == 0
    assert "missing, so their cases will fail" in capsys.readouterr().err
    assert predict(tmp_path / "in", tmp_path / "out", bundle) == 1
    assert statuses(tmp_path / "out") == {"a": "done", "b": "failed"}
    error = records(tmp_path / "out")["b"]["error"]
    assert re.search(r"b_0001.nii.gz: no such file; the case needs 2 channels", error)
    verdicts = {one["file"]: one for one in check_files(tmp_path / "in", bundle=bundle, safe=True)}
    assert verdicts[str(tmp_path / "in" / "a_0000.nii.gz")]["verdict"] == "good"
    assert verdicts[str(tmp_path / "in" / "b_0000.nii.gz")]["error"] == error


@pytest.mark.slow
@pytest.mark.parametrize("volumes", [1, 3])
def test_a_file_of_another_number_of_volumes(bundle, tmp_path, volumes):
    voxels = np.random.default_rng(0).normal(size=(20, 20, 12, volumes)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, zoo.AFFINE), tmp_path / "x.nii.gz")
    summary = predict_folder(tmp_path / "x.nii.gz", tmp_path / "out", bundle, **CPU)
    assert summary.failed == 1
    error = records(tmp_path / "out")["x"]["error"]
    assert f"x.nii.gz: {volumes} channel(s); 2 files of one volume each, or one 4D file of 2 volumes" in error
    assert "volume=" not in error
    assert check_files(tmp_path / "x.nii.gz", bundle=bundle, safe=True)[0]["error"] == error


@pytest.mark.slow
def test_one_channel_keeps_names_and_4d_advice(tmp_path):
    single = write_bundle(tmp_path / "bundle", [LOAD, ORIENT, SPACING, TYPED])
    write_case(tmp_path / "in", "a")
    write_case(tmp_path / "in", "b", as_4d=True)
    predict_folder(tmp_path / "in", tmp_path / "out", single, device="cpu")
    found = records(tmp_path / "out")
    assert {name: one["status"] for name, one in found.items()} == {
        "a_0000": "done",
        "a_0001": "done",
        "b": "failed",
    }
    assert "Pick one with volume=N" in found["b"]["error"]


def shifted(voxels):
    affine = zoo.AFFINE.copy()
    affine[:3, 3] += voxels * affine[:3, 0]
    return affine


@pytest.mark.slow
def test_grids_within_a_tenth_of_a_voxel_are_one(bundle, tmp_path, capsys):
    for name, shift in (("near", 0.09), ("far", 0.5)):
        _, second = write_case(tmp_path / "in", name)
        image = nib.load(second)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), shifted(shift)), second)
    assert predict(tmp_path / "in", tmp_path / "out", bundle) == 1
    found = records(tmp_path / "out")
    assert found["near"]["status"] == "done"
    distance = 0.5 * np.linalg.norm(zoo.AFFINE[:3, 0])
    words = f"far_0001.nii.gz: up to 0.5 voxels ({distance:.3g} mm) away from"
    assert words in found["far"]["error"]
    assert "resample_channels=True" in found["far"]["error"]
    assert "--resample-channels" in capsys.readouterr().err
    options = {"bundle": bundle, "safe": True}
    verdicts = {Path(one["file"]).name: one for one in check_files(tmp_path / "in", **options)}
    assert words in verdicts["far_0000.nii.gz"]["error"]
    assert predict(tmp_path / "in", tmp_path / "out", bundle, "--resample-channels", "--overwrite") == 0
    assert "resampled onto the grid of far_0000.nii.gz" in str(records(tmp_path / "out")["far"]["warnings"])
    verdicts = {Path(one["file"]).name: one for one in check_files(tmp_path / "in", resample_channels=True, **options)}
    assert {name: one["verdict"] for name, one in verdicts.items()} == {
        "far_0000.nii.gz": "odd",
        "near_0000.nii.gz": "good",
    }
    images = [nib.load(tmp_path / "in" / f"far_000{i}.nii.gz") for i in range(2)]
    labels = Predictor(bundle, resample_channels=True, **CPU).predict(images)
    np.testing.assert_array_equal(labels.get_fdata(), labels_in(tmp_path / "out", "far"))


@pytest.mark.slow
def test_numbered_files_and_4d_files_for_a_key_of_each_modality(tmp_path):
    keys = ["t1", "flair"]
    loading = [{**step, "keys": keys} for step in (LOAD, ORIENT, SPACING)]
    join = {"_target_": "ConcatItemsd", "keys": keys, "name": "image"}
    post = [ARGMAX, invert(orig_keys="t1")]  # MONAI undoes what was done under that key
    other = write_bundle(tmp_path / "bundle", [*loading, join, TYPED], post, channels=2)
    paths = write_case(tmp_path / "in", "a")
    write_case(tmp_path / "whole", "a", as_4d=True)
    for given in ("in", "whole"):
        assert predict_folder(tmp_path / given, tmp_path / f"{given}_out", other, device="cpu").done == 1
    (monai,) = monai_labels(other, [dict(zip(keys, paths))], tmp_path / "monai", "t1")
    assert several(monai)
    np.testing.assert_array_equal(labels_in(tmp_path / "in_out", "a"), monai)
    np.testing.assert_array_equal(labels_in(tmp_path / "whole_out", "a"), monai)


@pytest.mark.slow
def test_folds_are_averaged_chosen_and_named(bundle, tmp_path, capsys):
    paths = write_case(tmp_path / "in", "a")
    loaded = load_bundle(bundle, "cpu", safe=True)
    assert isinstance(loaded.network, FoldEnsemble)
    one_by_one = [Predictor(bundle, probabilities=True, folds=[k], **CPU) for k in (0, 1)]
    both = Predictor(bundle, probabilities=True, **CPU)
    images = [nib.load(path) for path in paths]
    alone = [one.predict_volumes(volumes_from(images)).maps["prob"] for one in one_by_one]
    averaged = both.predict_volumes(volumes_from(images)).maps["prob"]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    assert predict(tmp_path / "in", tmp_path / "both", bundle) == 0
    line = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(
        r"vit3d: weights: fold_0.pt of \d{4}-\d\d-\d\d \d\d:\d\d, fold_1.pt of .*, probabilities averaged", line
    )
    files = json.loads((tmp_path / "both" / "run.json").read_text())["weights"]
    assert [Path(one["file"]).name for one in files] == ["fold_0.pt", "fold_1.pt"]
    assert all(re.fullmatch("[0-9a-f]{64}", one["sha256"]) for one in files)
    assert predict(tmp_path / "in", tmp_path / "second", bundle, "--folds", "1") == 0
    assert "weights: fold_1.pt of" in capsys.readouterr().err
    np.testing.assert_array_equal(labels_in(tmp_path / "second", "a"), one_by_one[1].predict(images).get_fdata())
    assert averaged.shape == alone[0].shape
    assert all(np.abs(averaged - one).max() > 0.05 for one in alone)
    np.testing.assert_allclose(averaged.sum(0), 1, atol=1e-5)


@torch.no_grad()
def test_the_ensembles_probabilities_in_one_window_are_the_mean_in_float64(bundle):
    image = torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    network = load_bundle(bundle, "cpu", safe=True).network
    expected = sum(segmenter(fold).double()(image.double()).softmax(1) for fold in (0, 1)) / 2
    torch.testing.assert_close(network(image).double().softmax(1), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--folds", "0,5"], "no weights of fold 5 (finished: 0, 1)"),
        (["--folds", "1,1"], "folds [1, 1]; numbers from 0"),
    ],
)
def test_folds_that_are_not_there_are_one_line(bundle, tmp_path, capsys, flags, words):
    write_case(tmp_path / "in", "a")
    assert predict(tmp_path / "in", tmp_path / "out", bundle, *flags) == 2
    assert words in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_folds_or_without_a_training(tmp_path, capsys):
    write_case(tmp_path / "in", "a")
    single = write_bundle(tmp_path / "single", [LOAD, ORIENT, TYPED], channels=2)
    with pytest.raises(UsageError, match="folds=: the bundle has one set of weights and no folds"):
        predict_folder(tmp_path / "in", tmp_path / "out", single, device="cpu", overrides={"folds": [0]})
    untrained = write_fold_bundle(tmp_path / "untrained", folds=())
    assert predict(tmp_path / "in", tmp_path / "out", untrained) == 2
    assert "no training is finished. Train the bundle first: vit3d train" in error_of(capsys)


@pytest.mark.slow
def test_info_names_every_fold(bundle):
    weights = describe_bundle(bundle)["weights"]
    assert re.fullmatch("fold_0.pt, SHA-256 [0-9a-f]{64}, fold_1.pt, SHA-256 [0-9a-f]{64}", weights)


def test_several_files_need_an_ensemble(tmp_path):
    copy = write_fold_bundle(tmp_path / "mine")
    text = (copy / "configs" / "inference.yaml").read_text()
    text = re.sub("(?m)^network: .*$", "network: $@network_def.to(@device)", text)
    (copy / "configs" / "inference.yaml").write_text(text.replace("path: '@ckpt_path'", "path: $@ckpt_path[0]"))
    with pytest.raises(WeightsError, match=r"fold_0.pt, .*fold_1.pt: several files, but the config builds no ensemble"):
        load_bundle(copy, "cpu", safe=True)


@pytest.mark.slow
def test_numbers_of_the_plan_reach_every_step(tmp_path):
    bundle = load_bundle(write_fold_bundle(tmp_path / "mine", keep_largest=[2], overlap=0.5), "cpu", safe=True)
    assert bundle.flip_axes == (1,)
    names = [type(step).__name__ for step in bundle.postprocessing.behind_scores()]
    assert "KeepLargestConnectedComponentd" in names
    assert bundle.inferer.inferer.overlap == 0.5
    without = load_bundle(write_fold_bundle(tmp_path / "other"), "cpu", safe=True)
    assert "KeepLargestConnectedComponentd" not in [type(s).__name__ for s in without.postprocessing.behind_scores()]


def test_metadata_are_as_monais_parser_has_them(bundle):
    parser = ConfigParser()
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser.read_config(str(bundle / "configs" / "inference.yaml"))
    parser["bundle_root"] = str(bundle)
    loaded = load_bundle(bundle, "cpu", safe=True)
    assert parser.get_parsed_content("window") == list(loaded.inferer.inferer.roi_size)
    assert parser.get_parsed_content("flip_axes") == list(loaded.flip_axes)


@pytest.mark.slow
def test_which_patches_get_a_token_is_chosen_and_recorded(bundle, tmp_path):
    write_case(tmp_path / "in", "a")
    assert predict(tmp_path / "in", tmp_path / "as", bundle) == 0
    assert predict(tmp_path / "in", tmp_path / "none", bundle, "--tokens", "1e6") == 0
    assert predict(tmp_path / "in", tmp_path / "every", bundle, "--tokens=-1e6") == 0
    overrides = json.loads((tmp_path / "none" / "run.json").read_text())["overrides"]
    assert overrides == {"network_def#tokens": "1000000.0"}
    assert (labels_in(tmp_path / "none", "a") != labels_in(tmp_path / "as", "a")).any()
    np.testing.assert_array_equal(labels_in(tmp_path / "every", "a"), labels_in(tmp_path / "as", "a"))
    with pytest.raises(SystemExit) as stopped:
        predict(tmp_path / "in", tmp_path / "other", bundle, "--tokens", "some")
    assert stopped.value.code == 2
