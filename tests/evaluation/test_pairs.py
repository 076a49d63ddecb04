"""Pairs of predictions and labels by name."""

import pytest

from monai_vit3d.data import UsageError
from monai_vit3d.evaluation.pairs import case_name, pair_files, predicted_files


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a_seg.nii.gz", "a"),
        ("sub-01_T1w_dseg.nii.gz", "sub-01_T1w"),
        ("liver_12.nii.gz", "liver_12"),
        ("BraTS-GLI-00005-000-seg.nii.gz", "BraTS-GLI-00005-000"),
        ("case.label.nrrd", "case"),
        ("seg.nii.gz", "seg"),
        ("a_b_Labels.nii", "a_b"),
        ("beseg.nii.gz", "beseg"),
    ],
)
def test_names_of_cases(tmp_path, file, name):
    assert case_name(tmp_path / file) == name


def test_files_are_paired_and_the_others_named(tmp_path):
    touch(
        tmp_path / "pred",
        "b_seg.nii.gz",
        "a_seg.nii.gz",
        "a_entropy.nii.gz",
        "x_seg.nii.gz",
        ".c_seg.nii.gz",
        "qc/a.png",
    )
    touch(tmp_path / "labels", "a.nii.gz", "sub/b.nii.gz", "c.nii.gz", "d.nii.gz")
    touch(tmp_path / "images", "a_0000.nii.gz", "a_0001.nii.gz", "c.nii.gz")
    cases, notes = pair_files(tmp_path / "pred", tmp_path / "labels", tmp_path / "images")
    assert [(case.name, case.prediction.name, case.label.name) for case in cases] == [
        ("a", "a_seg.nii.gz", "a.nii.gz"),
        ("b", "b_seg.nii.gz", "b.nii.gz"),
    ]
    assert [case.image and case.image.name for case in cases] == ["a_0000.nii.gz", None]
    assert [case.subject for case in cases] == ["a", "b"]
    assert notes == ["labels without a prediction (2): c, d", "predictions without a label (1): x"]


def test_bids_files_are_paired_by_subject_and_session(tmp_path):
    touch(tmp_path / "pred", *[f"sub-{i}/ses-1/anat/sub-{i}_ses-1_desc-T1w_dseg.nii.gz" for i in (1, 2)])
    touch(
        tmp_path / "labels", *[f"sub-{i}/ses-1/anat/sub-{i}_ses-1_space-orig_desc-manual_dseg.nii.gz" for i in (1, 2)]
    )
    cases, notes = pair_files(tmp_path / "pred", tmp_path / "labels")
    assert [case.name for case in cases] == ["sub-1_ses-1", "sub-2_ses-1"]
    assert notes == []


def test_many_missing_ones_are_counted(tmp_path):
    touch(tmp_path / "pred", "a.nii.gz")
    touch(tmp_path / "labels", "a.nii.gz", *[f"b{i}.nii.gz" for i in range(8)])
    assert pair_files(tmp_path / "pred", tmp_path / "labels").notes == [
        "labels without a prediction (8): b0, b1, b2, b3, b4 and 3 more"
    ]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], ["a.nii.gz"], "pred: no such folder"),
        (["notes.txt"], ["a.nii.gz"], "pred: no images, such as .nii.gz, in it"),
        (["a_seg.nii.gz"], ["b.nii.gz"], "no common names; a in the first, b in the second"),
        (["a_seg.nii.gz", "x/a_pred.nii.gz"], ["a.nii.gz"], "two files of one case, a"),
    ],
)
def test_what_cannot_be_paired(tmp_path, predictions, labels, message):
    touch(tmp_path / "pred", *predictions)
    touch(tmp_path / "labels", *labels)
    with pytest.raises(UsageError, match=message) as error:
        pair_files(tmp_path / "pred", tmp_path / "labels")
    assert "\n" not in str(error.value)


def test_hostile_names_are_escaped(tmp_path):
    touch(tmp_path / "pred", "a\x1b[31m_seg.nii.gz")
    touch(tmp_path / "labels", "b\n.nii.gz")
    with pytest.raises(UsageError, match=r"a\\x1b\[31m in the first, b\\n in the second"):
        pair_files(tmp_path / "pred", tmp_path / "labels")


def test_predicted_files(tmp_path):
    touch(tmp_path, "a_seg.nii.gz", "b/c_seg.nii.gz", "a_probabilities.nii.gz")
    assert predicted_files(tmp_path) == {"a": tmp_path / "a_seg.nii.gz", "c": tmp_path / "b/c_seg.nii.gz"}


def test_predictions_of_nnunets_images_are_paired_with_its_labels(tmp_path):
    """``vit3d predict imagesTr`` of a bundle with one channel names its labels by the files, channel number and all."""
    touch(tmp_path / "pred", "case_001_0000_seg.nii.gz", "case_002_0000_seg.nii.gz", "9_0000_seg.nii.gz")
    touch(tmp_path / "labelsTr", "case_001.nii.gz", "case_002.nii.gz", "case_003.nii.gz")
    pairing = pair_files(tmp_path / "pred", tmp_path / "labelsTr", tmp_path / "pred")
    assert [(case.name, case.prediction.name) for case in pairing.cases] == [
        ("case_001", "case_001_0000_seg.nii.gz"),
        ("case_002", "case_002_0000_seg.nii.gz"),
    ]
    assert pairing.notes == ["labels without a prediction (1): case_003", "predictions without a label (1): 9"]
