"""The ranges that shipped bundles are compared with: measured, not typed; they pass real cases and no whole head."""

import json

import pytest
from nilearn.datasets import load_mni152_template

from monai_vit3d.data import decathlon_split
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.pipeline.measure_training import measure_training
from tests.helpers import HIPPOCAMPUS

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
