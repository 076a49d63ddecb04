"""The fixed split: files in the split's order, and what is said when they are not there."""

import json

import pytest

from monai_vit3d.data import DatasetError, decathlon_split, nifti_files


@pytest.fixture
def task(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        for case in ("a", "b", "c"):
            (tmp_path / folder / f"{case}.nii.gz").touch()
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"training": ["c", "a"], "test": ["b", "z"]}))
    return tmp_path, split


def test_split_keeps_its_order(task):
    root, split = task
    files = decathlon_split(root, split, "training")
    assert [f["image"] for f in files] == [str(root / "imagesTr" / f"{c}.nii.gz") for c in "ca"]
    assert [f["label"] for f in files] == [str(root / "labelsTr" / f"{c}.nii.gz") for c in "ca"]


@pytest.mark.parametrize(
    ("section", "message"), [("test", "z.nii.gz.*download=True"), ("validation", "no section 'validation'")]
)
def test_what_is_missing_is_named(task, section, message):
    with pytest.raises(DatasetError, match=message):
        decathlon_split(*task, section)


def test_no_task_says_how_to_fetch_it(tmp_path):
    with pytest.raises(DatasetError, match=r"DecathlonDataset.*MONAI_DATA_DIRECTORY"):
        decathlon_split(tmp_path, tmp_path / "split.json", "training")


def test_nifti_files_are_found_below_and_sorted(task, tmp_path):
    root, _ = task
    names = [f[len(str(root)) + 1 :] for f in nifti_files(root)]
    assert names == [f"imagesTr/{c}.nii.gz" for c in "abc"]  # labels are no scans
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        with pytest.raises(DatasetError, match=folder):
            nifti_files(tmp_path / folder)
