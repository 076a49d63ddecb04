"""Every bundle's training on files that are broken, and on too few: refused with the file's name, nothing saved."""

import csv
import json
import shutil
import traceback

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_vit3d.data.errors import Vit3dError
from tests.bundles.balls import NET, SIZE, arrays
from tests.bundles.helpers import command, run_here, run_to_fail, workflow
from tests.bundles.test_hippocampus import SMALL
from tests.bundles.test_pretraining import TASKS, TINY
from tests.helpers import BUNDLES, phantom

SEGMENTATION, CLASSIFICATION = BUNDLES / "hippocampus_segmentation", BUNDLES / "medmnist3d_classification"


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__


def refusal(call):
    """The words of the package's own error in what a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        call()
    own = [str(error) for error in causes(caught.value) if isinstance(error, Vit3dError)]
    assert own, "".join(traceback.format_exception(caught.value))
    return own[0]


@pytest.fixture
def task(tmp_path):
    """A Decathlon-like task of four small phantoms: two to train on, two to validate."""
    root, cases = tmp_path / "task", ["a", "b", "c", "d"]
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for i, case in enumerate(cases):
        image, label = phantom(i, shape=(12, 14, 10))
        image.to_filename(root / "imagesTr" / f"{case}.nii.gz")
        label.to_filename(root / "labelsTr" / f"{case}.nii.gz")
    (root / "split.json").write_text(json.dumps({"training": ["a", "b"], "validation": ["c", "d"]}))
    return root


def rewritten(path, change, affine=None):
    """A file whose voxels (float64) went through ``change``."""
    image = nib.load(path)
    voxels = change(np.asarray(image.dataobj, float))
    nib.Nifti1Image(voxels, image.affine if affine is None else affine).to_filename(path)


def with_voxel(value):
    def change(voxels):
        voxels[1, 1, 1] = value
        return voxels

    return lambda path: rewritten(path, change)


def other_grid(path):
    rewritten(path, lambda voxels: voxels, nib.load(path).affine + np.eye(4) * [0.2, 0, 0, 0])


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def doubled(path):
    rewritten(path, lambda voxels: np.stack([voxels, voxels], -1))


def removed(path):
    path.unlink()


def shrunk(path):
    rewritten(path, lambda voxels: voxels[:-1])


LABELS = {
    "255": (with_voxel(255), "label 255"),
    "-1": (with_voxel(-1), "label -1"),
    "1.5": (with_voxel(1.5), "label 1.5"),
    "nan": (with_voxel(np.nan), "not finite"),
    "inf": (with_voxel(np.inf), "not finite"),
    "other grid": (other_grid, "voxels away"),
    "other shape": (shrunk, "its image has"),
    "4D": (doubled, "4D"),
    "missing": (removed, "missing"),
    "cut": (cut, "b.nii.gz"),
}
IMAGES = {"cut": cut, "4D": doubled, "missing": removed, "all nan": lambda path: rewritten(path, lambda v: v * np.nan)}


@pytest.mark.parametrize("section", ["train", "validate"])
@pytest.mark.parametrize("fault", LABELS)
def test_segmentation_refuses_labels(fault, section, task):
    spoil, words = LABELS[fault]
    path = task / "labelsTr" / ("b.nii.gz" if section == "train" else "c.nii.gz")
    spoil(path)
    parser = workflow(SEGMENTATION, "train", dataset_dir=task, split_file=task / "split.json").parser
    said = refusal(lambda: parser.get_parsed_content(f"{section}#dataset"))
    assert str(path) in said
    assert words.replace("b.nii.gz", path.name) in said


@pytest.mark.parametrize("fault", ["255", "1.5", "nan", "other grid", "4D"])
def test_scoring_refuses_labels(fault, task):
    spoil, words = LABELS[fault]
    spoil(task / "labelsTr" / "c.nii.gz")
    options = {"dataset_dir": task, "split_file": task / "split.json", "section": "validation"}
    dataset = workflow(SEGMENTATION, "inference", "evaluate", **options).parser.get_parsed_content("dataset")
    said = refusal(lambda: dataset[0])
    assert words in said
    assert "labelsTr/c.nii.gz" in said


@pytest.mark.parametrize("name", ["hippocampus_segmentation", *TASKS])
@pytest.mark.parametrize("fault", IMAGES)
def test_images_are_read_strictly(fault, name, task):
    path = task / "imagesTr" / "b.nii.gz"
    IMAGES[fault](path)
    parser = workflow(BUNDLES / name, "train", dataset_dir=task, split_file=task / "split.json").parser
    assert str(path) in refusal(lambda: parser.get_parsed_content("train#dataset"))


@pytest.mark.parametrize("fault", IMAGES)
def test_classification_reads_files_strictly(fault, task, balls):
    path = task / "imagesTr" / "b.nii.gz"
    with (task / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], ["imagesTr/a.nii.gz", "small"], ["imagesTr/b.nii.gz", "large"]])
    IMAGES[fault](path)
    options = {"datasets_file": balls / "sets.json", "dataset_name": "balls", "train_csv": task / "train.csv", **NET}
    parser = workflow(CLASSIFICATION, "inference", "train", "nifti", **options).parser
    assert str(path) in refusal(lambda: parser.get_parsed_content("train#dataset"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["medmnist3d_classification", *TASKS])
def test_arrays_with_a_voxel_that_is_not_finite_are_refused(name, value, balls, tmp_path):
    shutil.copy(balls / "sets.json", tmp_path)
    held = {key: array.astype(np.float32) if "images" in key else array for key, array in arrays(balls).items()}
    held["train_images"][3, 2, 2, 2] = value
    np.savez(tmp_path / f"balls_{SIZE}.npz", **held)
    options = {"datasets_file": tmp_path / "sets.json", "dataset_name": "balls", "dataset_dir": tmp_path}
    configs = ("train",) if name == "medmnist3d_classification" else ("train", "medmnist")
    parser = workflow(BUNDLES / name, *configs, **options).parser
    said = refusal(lambda: parser.get_parsed_content("train_data"))
    assert f"balls_{SIZE}.npz" in said
    assert "1 images with voxels that are NaN or infinite (numbers 3)" in said


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hippocampus_segmentation", {"batch_size": 3}),
        ("ijepa_pretraining", {"world": 3, "rank": 2}),
        ("mae_pretraining", {"world": 3, "rank": 2}),
    ],
)
def test_too_few_cases_are_refused(name, options, task):
    parser = workflow(BUNDLES / name, "train", dataset_dir=task, split_file=task / "split.json", **options).parser
    assert "2 training cases" in refusal(lambda: parser.get_parsed_content("steps_per_epoch"))


def test_too_few_cases_of_classes_are_refused(balls):
    options = {"datasets_file": balls / "sets.json", "dataset_name": "balls", "dataset_dir": balls, **NET}
    parser = workflow(CLASSIFICATION, "train", batch_size=25, **options).parser
    assert "24 training cases make no batch of 25" in refusal(lambda: parser.get_parsed_content("steps_per_epoch"))


@pytest.mark.slow
def test_one_voxel_that_is_nan_spoils_no_weight(task, tmp_path):
    with_voxel(np.nan)(task / "imagesTr" / "a.nii.gz")
    data = {"dataset_dir": task, "split_file": task / "split.json", "window": [16, 16, 16]}
    run_here(SEGMENTATION, "train", output_dir=tmp_path / "out", epochs=1, val_interval=1, **data, **SMALL)
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hippocampus_segmentation", *TASKS])
def test_a_training_that_diverges_stops_with_its_files_and_saves_nothing(name, task, tmp_path):
    options = {"dataset_dir": task, "split_file": task / "split.json", "window": [16, 16, 16], "output_dir": tmp_path}
    small = SMALL if name == "hippocampus_segmentation" else {"depth": 2, **TINY, **TASKS[name]}
    nan = {"train#loss": "$lambda *given: torch.tensor(float('nan'), requires_grad=True)"}
    said = refusal(lambda: run_here(BUNDLES / name, "train", epochs=1, **options, **small, **nan))
    assert "epoch 1, iteration 1: the loss is nan" in said
    assert all(str(task / "imagesTr" / f"{case}.nii.gz") in said for case in "ab")
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pt", ".safetensors")]


@pytest.mark.slow
def test_a_command_ends_with_one_line_that_names_the_file(task, tmp_path):
    with_voxel(255)(task / "labelsTr" / "a.nii.gz")
    options = {"dataset_dir": task, "split_file": task / "split.json", "output_dir": tmp_path}
    said = run_to_fail(command("run", config_file="configs/train.yaml", **options), SEGMENTATION, fresh=True)
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"ImageError: {task / 'labelsTr' / 'a.nii.gz'}: label 255 (1 voxels)")
    assert "Traceback" not in said
