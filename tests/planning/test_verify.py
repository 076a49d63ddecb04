"""What is wrong with a data set is said by file, and errors are exactly what the training's reader refuses."""

from __future__ import annotations

import dataclasses
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged

from monai_vit3d.data import CheckLabelsd, NiftiReader, Vit3dError
from monai_vit3d.planning import examine, read_dataset
from monai_vit3d.planning.folds import assign_folds
from monai_vit3d.planning.init import plan_bundle
from tests.planning.toy_data import CLASSES, write_toy

CT, PET, LABEL = "imagesTr/sub-01_0000.nii.gz", "imagesTr/sub-01_0001.nii.gz", "labelsTr/sub-01.nii.gz"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"), "nnunet_v2", cases=3, testing=1, shape=(20, 18, 14))


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


def edit(name, change=lambda voxels: voxels, shift_mm=0.0, dtype=None):
    """Return a mistake: a file with other voxels, or elsewhere."""

    def apply(root):
        image = nib.load(root / name)
        voxels = np.asanyarray(image.dataobj).copy()
        affine = image.affine.copy()
        affine[0, 3] += shift_mm
        voxels = change(voxels if dtype is None else voxels.astype(dtype))
        nib.save(nib.Nifti1Image(voxels, affine), root / name)

    return apply


def put(value):
    """Return a change of the first three voxels."""

    def change(voxels):
        voxels[0, 0, :3] = value
        return voxels

    return change


def truncate(name):
    def apply(root):
        path = root / name
        path.write_bytes(path.read_bytes()[:-100])

    return apply


def rename(name, new):
    return lambda root: (root / name).rename(root / new)


# mistake: the file that the problem is about, and what the text says
ERRORS = {
    "no label": (lambda r: (r / LABEL).unlink(), LABEL, "no such file; the label map of sub-01 is expected"),
    "no second channel": (lambda r: (r / PET).unlink(), PET, "no such file; the PET image of sub-01 is expected"),
    "truncated": (truncate(CT), CT, "truncated"),
    "channel of another shape": (edit(PET, lambda v: v[:-1]), PET, "channels need one grid"),
    "channel elsewhere": (edit(PET, shift_mm=3), PET, r"up to 2 voxels \(3 mm\) away"),
    "4D channel": (edit(CT, lambda v: np.stack([v, v], -1)), CT, r"2 volumes for sub-01; 1 \(CT\) expected"),
    "4D labels": (edit(LABEL, lambda v: np.stack([v, v], -1)), LABEL, "4D labels of 2 volumes; one 3D map"),
    "labels of another shape": (edit(LABEL, lambda v: v[:-1]), LABEL, "labels of shape .*; one grid is expected"),
    "labels elsewhere": (edit(LABEL, shift_mm=1.5), LABEL, "labels up to 1 voxels away"),
    "fraction": (edit(LABEL, put(0.5), dtype="f4"), LABEL, r"label 0.5 \(3 voxels\); 0 \(background\), 1 \(lesion\), "),
    "unknown class": (edit(LABEL, put(9)), LABEL, r"label 9 \(3 voxels\); .*3 \(right_organ\) are expected"),
    "negative": (edit(LABEL, put(-1), dtype="i2"), LABEL, r"label -1 \(3 voxels\)"),
    "many unknown": (edit(LABEL, lambda v: v * 0 + np.arange(v.size, dtype="i2").reshape(v.shape), dtype="i2"), LABEL,
                     r"label 4 \(1 voxels\), .*8 \(1 voxels\) and \d+ other values; 0"),
    "NaN in labels": (edit(LABEL, put(np.nan), dtype="f4"), LABEL, "not finite"),
    "no voxel is finite": (edit(CT, lambda v: v * np.nan, dtype="f4"), CT, "none of .* voxels is finite"),
}  # fmt: skip
WARNINGS = {
    "NaN in an image": (edit(PET, put(np.nan)), PET, "3 of 5040 voxels are not finite"),
    "constant image": (edit(PET, lambda v: v * 0), PET, "all voxels are 0"),
    "empty labels": (edit(LABEL, lambda v: v * 0), LABEL, "no voxel of sub-01 is labelled"),
    "broken test image": (truncate("imagesTs/sub-03_0000.nii.gz"), "imagesTs/sub-03_0000.nii.gz", "truncated"),
    "missing test channel": (
        lambda r: (r / "imagesTs/sub-03_0001.nii.gz").unlink(), "imagesTs/sub-03_0001.nii.gz", "no such file; the PET",
    ),
}  # fmt: skip


def the_problem(dataset, severity, file, text):
    """Return the one problem of a severity, after checking what it says."""
    problems = [problem for problem in examine(dataset).problems if problem.severity == severity]
    assert [(problem.file, "\n" in problem.text) for problem in problems] == [(file, False)]
    assert len(problems) == 1
    assert re.search(text, problems[0].text), problems[0].text
    assert str(file) not in problems[0].text


def load_as_training(case):
    """Read a case as a generated bundle's training does."""
    read = Compose(
        [
            LoadImaged("image", reader=NiftiReader(channels=2), ensure_channel_first=True),
            LoadImaged("label", reader=NiftiReader(labels=True), ensure_channel_first=True),
            CheckLabelsd("label", num_classes=len(CLASSES)),
        ]
    )
    return read({"image": list(case.images), "label": case.label})


def test_a_good_data_set_has_no_problems(root):
    dataset = read_dataset(root)
    names = []
    problems, fingerprint, _ = examine(dataset, on_case=names.append)
    assert problems == []
    assert fingerprint["cases"] == 3
    assert names == [case.name for case in dataset.cases]
    for case in dataset.section("training"):
        load_as_training(case)


@pytest.mark.parametrize("mistake", ERRORS)
def test_errors_are_what_the_training_refuses(root, mistake):
    apply, file, text = ERRORS[mistake]
    apply(root)
    dataset = read_dataset(root)
    the_problem(dataset, "error", root / file, text)
    with pytest.raises((Vit3dError, RuntimeError, FileNotFoundError)):
        load_as_training(dataset.cases[1])
    load_as_training(dataset.cases[0])


@pytest.mark.parametrize("mistake", WARNINGS)
def test_warnings_are_no_hindrance(root, mistake):
    apply, file, text = WARNINGS[mistake]
    apply(root)
    dataset = read_dataset(root)
    the_problem(dataset, "warning", root / file, text)
    assert not [problem for problem in examine(dataset).problems if problem.severity == "error"]
    for case in dataset.section("training"):
        load_as_training(case)


def test_errors_come_first_and_the_fingerprint_is_of_the_rest(root):
    WARNINGS["NaN in an image"][0](root)
    (root / "labelsTr/sub-00.nii.gz").unlink()
    problems, fingerprint, _ = examine(read_dataset(root))
    assert [problem.severity for problem in problems] == ["error", "warning"]
    assert fingerprint["cases"] == 2


def test_copies_of_a_case_are_seen(root):
    for name in (CT, PET, LABEL):
        shutil.copy(root / name, root / name.replace("01", "02", 1))
    files = [root / name.replace("01", "02", 1) for name in (CT, PET)]
    problems = [problem for problem in examine(read_dataset(root)).problems if "the same bytes" in problem.text]
    assert [problem.file for problem in problems] == files
    assert str(root / CT) in problems[0].text


@pytest.mark.slow
def test_copies_share_a_fold_whatever_their_names(root):
    """Of three cases two are the same scan: two subjects, of whom one has both."""
    for name in (CT, PET, LABEL):
        shutil.copy(root / name, root / name.replace("01", "02", 1))
    report = plan_bundle(root, None, dry_run=True, overrides={"device": "cpu"})
    cases = report.dataset.section("training")
    assert [case.subject for case in cases] == ["sub-00", "sub-01", "sub-01"]
    assert report.plan["folds"] == 2
    folds = assign_folds(cases, 2)
    assert folds[1] == folds[2] != folds[0]


def test_copies_in_two_folds_of_the_datas_own_are_said(root):
    for name in (CT, PET, LABEL):
        shutil.copy(root / name, root / name.replace("01", "02", 1))
    dataset = read_dataset(root)
    cases = [dataclasses.replace(case, fold=i % 2) for i, case in enumerate(dataset.cases)]
    problems = examine(dataclasses.replace(dataset, cases=tuple(cases))).problems
    texts = [problem.text for problem in problems if "the same bytes" in problem.text]
    assert all("fold 1 has the one, fold 0 the other" in text for text in texts)
    assert len(texts) == 2


def test_the_number_of_threads_changes_nothing(root):
    ERRORS["fraction"][0](root)
    dataset = read_dataset(root)
    assert examine(dataset, threads=1) == examine(dataset, threads=3)


def test_channels_of_one_file_are_checked(tmp_path):
    root = write_toy(tmp_path, "decathlon", cases=2, testing=0, shape=(20, 18, 14))
    edit("imagesTr/sub-01.nii.gz", lambda voxels: voxels[..., :1])(root)
    text = r"1 volume for sub-01; 2 \(CT, PET\) expected"
    the_problem(read_dataset(root), "error", root / "imagesTr/sub-01.nii.gz", text)


def changed(dataset, index, **changes):
    cases = list(dataset.cases)
    cases[index] = dataclasses.replace(cases[index], **changes)
    return dataclasses.replace(dataset, cases=tuple(cases))


def test_a_case_has_a_file_for_each_channel_or_one(original):
    dataset = read_dataset(original)
    image = dataset.cases[1].images[0]
    text = "3 files for sub-01; one for each of CT, PET is expected"
    the_problem(changed(dataset, 1, images=(image,) * 3), "error", image, text)


def test_a_case_to_train_with_needs_a_label(original):
    dataset = read_dataset(original)
    the_problem(changed(dataset, 1, label=None), "error", dataset.cases[1].images[0], "no label of sub-01")


def test_a_subject_is_in_one_fold(original):
    dataset = read_dataset(original)
    for index, fold in enumerate((0, 1, 1)):
        dataset = changed(dataset, index, fold=fold, subject="eve" if index < 2 else "ada")
    text = "subject eve is in fold 1, and in fold 0 by sub-00; one fold is expected"
    the_problem(dataset, "error", dataset.cases[1].images[0], text)
    assert not examine(changed(dataset, 0, fold=1)).problems


def test_folds_of_some_cases_are_not_used(original):
    dataset = changed(read_dataset(original), 1, fold=2)
    the_problem(dataset, "warning", dataset.root, "2 of 3 cases have no fold")


@pytest.mark.parametrize(
    ("names", "severity", "text"),
    [
        ({0: "background", **dict.fromkeys((1, 2, 3, 255), "x")}, "error", "classes 0, 1, 2, 3, 255; 0, 1 and so on"),
        ({**CLASSES, 4: "bone"}, "warning", r"class 4 \(bone\) is in no label"),
    ],
)
def test_values_of_classes(original, names, severity, text):
    dataset = dataclasses.replace(read_dataset(original), class_names=names)
    the_problem(dataset, severity, dataset.root, text)


def test_labels_of_background_alone_teach_nothing(root):
    for path in (root / "labelsTr").iterdir():
        edit(path.relative_to(root), lambda voxels: voxels * 0)(root)
    dataset = dataclasses.replace(read_dataset(root), class_names={0: "background"})
    the_problem(dataset, "error", root, "classes 0; 0, 1 and so on")


def test_classes_of_a_classification_are_learnt_from_training_cases(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        voxels = np.full((4, 4, 4), ord(name[0]), np.float32)
        voxels[0] = 0
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
    (tmp_path / "l.csv").write_text("image,label,section\na.nii.gz,sick,train\nb.nii.gz,well,test\n")
    the_problem(read_dataset(tmp_path), "warning", tmp_path, r"class 1 \(well\) is in no label. It cannot be learnt.")


def test_labels_that_cannot_be_read_may_have_the_classes_that_others_lack(root):
    for path in (root / "labelsTr").iterdir():
        edit(path.relative_to(root), lambda voxels: voxels * (voxels != 1))(root)
    the_problem(read_dataset(root), "warning", root, r"class 1 \(lesion\) is in no label")
    ERRORS["4D labels"][0](root)
    assert [problem.file for problem in examine(read_dataset(root)).problems] == [root / LABEL]
