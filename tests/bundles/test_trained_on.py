"""The ranges that shipped bundles are compared with: measured, not typed; they pass real cases and no whole head."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_template
from torch.nn.functional import adaptive_avg_pool3d

from monai_vit3d.data import decathlon_split
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.pipeline.measure_training import measure_training
from tests.helpers import BUNDLES, HIPPOCAMPUS

SPLIT = HIPPOCAMPUS / "configs" / "split.json"
SHIPPED = json.loads((HIPPOCAMPUS / "configs" / "metadata.json").read_text())["trained_on"]


@pytest.mark.slow
def test_ranges_are_those_of_the_training_files(decathlon_hippocampus):
    cases = decathlon_split(decathlon_hippocampus, SPLIT, "training")
    measured = measure_training(cases)
    orientations = measured.pop("orientation")
    assert orientations
    assert all(len(letters) == 3 for letters in orientations)
    for quantity, ranges in measured.items():
        if quantity == "labels":
            shipped = {value: {k: v for k, v in one.items() if k != "name"} for value, one in SHIPPED["labels"].items()}
            assert shipped == ranges
        else:
            assert SHIPPED[quantity] == ranges


@pytest.mark.slow
def test_ranges_of_whole_heads_are_those_of_the_label_maps_and_of_the_crops():
    """A stripped brain, cropped, is the smallest head that was drawn; the grid of the drawn heads is the largest."""
    maps = sorted(Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")).glob("head_label_maps/*.nii.gz"))
    if not maps:
        pytest.skip("MONAI_DATA_DIRECTORY has no head_label_maps")
    head = json.loads((BUNDLES / "head_hippocampus" / "configs" / "metadata.json").read_text())["trained_on"]
    extents = []
    for path in maps[:-4]:  # the last four are for validation
        image = nib.as_closest_canonical(nib.load(path))
        values = np.asarray(image.dataobj)
        brain = (values > 0) & (values < 500) & (values != 24)  # without the skull's inside and what lies outside
        extents.append([(np.ptp(where) + 1) * mm for where, mm in zip(brain.nonzero(), image.header.get_zooms())])
    smallest = np.min(extents, axis=0)
    assert head["field_of_view_mm"] == {
        axis: [mm, 64 * 4.0] for axis, mm in zip(("left-right", "back-front", "bottom-top"), smallest)
    }
    for value, one in head["labels"].items():
        crop = SHIPPED["labels"]["1" if value in "13" else "2"]
        assert one == {key: crop[key] for key in ("present", "volume_ml", "pieces")}


@pytest.mark.data
def test_ranges_of_the_masks_are_those_of_the_training_part(adrenal_mnist):
    """Each averaged to 32 voxels a side, the middle 28 of them from 0 to 2, as the network saw them."""
    mask = json.loads((BUNDLES / "medmnist3d_classification" / "configs" / "metadata.json").read_text())["trained_on"]
    with np.load(adrenal_mnist / "adrenalmnist3d_64.npz") as held:
        volumes = held["train_images"]
    shares, quantiles = (5, 25, 50, 75, 95), []
    for volume in volumes:
        small = adaptive_avg_pool3d(torch.from_numpy(volume)[None].float(), 32)[0, 2:30, 2:30, 2:30]
        quantiles.append(np.percentile(small.numpy() * 2 / 255, shares))
    pairs = zip(np.min(quantiles, axis=0), np.max(quantiles, axis=0))
    assert mask["input"] == {f"{share}%": [low, high] for share, (low, high) in zip(shares, pairs)}
    assert mask["cases"] == len(volumes)


@pytest.mark.slow
def test_real_cases_raise_no_false_alarm(decathlon_hippocampus, tmp_path):
    """Of 20 validation cases at most one may be called suspicious; none is refused."""
    images = [case["image"] for case in decathlon_split(decathlon_hippocampus, SPLIT, "validation")]
    summary = predict_folder(images, tmp_path, HIPPOCAMPUS, device="cpu", safe=True)
    assert (summary.done, summary.failed) == (20, 0)
    assert summary.suspicious <= 1


def test_a_whole_head_is_refused_before_any_work(tmp_path):
    load_mni152_template(resolution=2).to_filename(tmp_path / "head.nii.gz")
    (found,) = check_files([tmp_path / "head.nii.gz"], bundle=HIPPOCAMPUS, safe=True)
    assert found["verdict"] == "refused"
    assert "field of view left-right 1" in found["error"]
    summary = predict_folder([tmp_path / "head.nii.gz"], tmp_path / "out", HIPPOCAMPUS, device="cpu", safe=True)
    assert (summary.done, summary.failed) == (0, 1)
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["files"]
    assert record["error"] == found["error"]
    assert "network" not in record["stages"]
    assert not (tmp_path / "out" / "head_seg.nii.gz").exists()


# MNI coordinates in mm: crops as large as those of the training, without a hippocampus
ELSEWHERE = {"cerebellum": (0, -65, -35), "frontal": (-20, 40, 20), "brainstem": (0, -25, -30), "air": (0, 100, 60)}


@pytest.mark.slow
def test_crops_of_other_places_are_suspicious_for_more_than_one_reason(tmp_path):
    """Nothing is far before the work: their size, spacing and brightness are those of the training."""
    head, size = load_mni152_template(resolution=1), np.array([36, 50, 36])
    (tmp_path / "in").mkdir()
    for name, place in {**ELSEWHERE, "hippocampus": (26, -22, -14)}.items():
        middle = nib.affines.apply_affine(np.linalg.inv(head.affine), place).round().astype(int)
        start = np.clip(middle - size // 2, 0, np.array(head.shape) - size)
        box = tuple(slice(low, low + n) for low, n in zip(start, size))
        head.slicer[box].to_filename(tmp_path / "in" / f"{name}.nii.gz")
    predict_folder(tmp_path / "in", tmp_path / "out", HIPPOCAMPUS, device="cpu", safe=True)
    records = json.loads((tmp_path / "out" / "run.json").read_text())["files"]
    kinds = {record["name"]: {one["kind"] for one in record["suspicious"]} for record in records}
    assert all({"volume", "entropy"} <= kinds[name] for name in ELSEWHERE)
    assert kinds["hippocampus"] <= {"border"}  # the head of the hippocampus reaches so small a box's side
