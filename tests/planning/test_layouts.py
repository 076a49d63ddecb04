"""Every layout gives the cases that it holds, or one line that says what is wrong."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.data import DatasetError, UsageError
from monai_vit3d.planning import LAYOUTS, read_dataset
from tests.planning.toy_data import (
    CHANNELS,
    CLASSES,
    MR_CHANNELS,
    MR_CLASSES,
    TOY_LAYOUTS,
    toy_cases,
    write_toy,
    write_toy_mr,
)

SMALL = {"cases": 3, "testing": 1, "shape": (12, 10, 8)}
READ_AS = {"nnunet_v1": "nnunet", "nnunet_v2": "nnunet", "decathlon": "json", "monai_list": "json",
           "case_folders_2023": "case_folders"}  # fmt: skip


def save(path, values=0, shape=(4, 4, 4)):
    """Write a small image; its value, or an array of its voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.broadcast_to(np.asarray(values, np.uint8), shape) if np.ndim(values) == 0 else values
    nib.save(nib.Nifti1Image(np.array(voxels), np.eye(4)), path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def channels_of(case):
    """Voxels of a case's images along R, A and S, channels first."""
    images = [nib.as_closest_canonical(nib.load(path)).get_fdata() for path in case.images]
    return np.stack(images) if len(images) > 1 else np.moveaxis(images[0], -1, 0)


@pytest.mark.parametrize("toy_layout", TOY_LAYOUTS)
def test_each_layout_holds_the_same_data(tmp_path, toy_layout):
    expected = toy_cases(**SMALL)
    dataset = read_dataset(write_toy(tmp_path, toy_layout, **SMALL))
    assert dataset.layout == READ_AS.get(toy_layout, toy_layout)
    assert (dataset.root, dataset.task) == (tmp_path, "segmentation")
    assert dataset.channel_names == CHANNELS
    assert dataset.class_names == CLASSES
    assert [case.name for case in dataset.cases] == [f"sub-0{i}" for i in range(4)]
    assert [case.subject for case in dataset.cases] == [case.name for case in dataset.cases]
    assert [case.section for case in dataset.cases] == ["training"] * 3 + ["testing"]
    assert dataset.section("testing")[0].label is None
    for case, toy in zip(dataset.cases, expected):
        np.testing.assert_array_equal(channels_of(case), toy.channels)
        if case.section == "training":
            labels = nib.as_closest_canonical(nib.load(case.label)).get_fdata()
            np.testing.assert_array_equal(labels, toy.labels)


@pytest.mark.parametrize("toy_layout", TOY_LAYOUTS)
def test_one_channel_in_each_layout(tmp_path, toy_layout):
    dataset = read_dataset(write_toy_mr(tmp_path, toy_layout, **SMALL))
    assert (dataset.channel_names, dataset.class_names) == (MR_CHANNELS, MR_CLASSES)
    assert [len(case.images) for case in dataset.cases] == [1] * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_named_layout_is_the_only_one_that_is_tried(tmp_path, layout):
    root = write_toy(tmp_path, "nnunet_v2", **SMALL)
    if layout in ("nnunet", "folders"):  # imagesTr and labelsTr are folders of like names, too
        assert read_dataset(root, layout).layout == layout
        assert read_dataset(root, layout).cases[0].images == read_dataset(root).cases[0].images
    else:
        with pytest.raises(DatasetError, match=rf"dataset.json, imagesTr/, imagesTs/, labelsTr/; .*: {layout} \("):
            read_dataset(root, layout)


@pytest.mark.parametrize(
    ("toy_layout", "file"),
    [("nnunet_v1", "dataset.json"), ("decathlon", "dataset.json"), ("monai_list", "datalist.json"), ("csv", "")],
)
def test_the_file_of_a_data_set_stands_for_its_folder(tmp_path, toy_layout, file):
    write_toy(tmp_path, toy_layout, **SMALL)
    assert read_dataset(tmp_path / (file or "cases.csv")) == read_dataset(tmp_path)


def test_channels_and_labels_that_nnunet_data_lack_keep_the_names_that_they_should_have(tmp_path):
    write_toy(tmp_path, "nnunet_v2", **SMALL)
    (tmp_path / "imagesTr/sub-01_0001.nii.gz").unlink()
    (tmp_path / "labelsTr/sub-02.nii.gz").unlink()
    cases = read_dataset(tmp_path).cases
    assert cases[1].images == (tmp_path / "imagesTr/sub-01_0000.nii.gz", tmp_path / "imagesTr/sub-01_0001.nii.gz")
    assert cases[2].label == tmp_path / "labelsTr/sub-02.nii.gz"


def test_nnunet_may_list_the_files_of_each_case(tmp_path):
    listed = {
        "a": {"images": ["x/1.nii.gz"], "label": "y/1.nii.gz"},
        "b": {"images": ["x/2.nii.gz"], "label": "y/2.nii"},
    }
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    write(tmp_path / "dataset.json", {**content, "dataset": listed})
    cases = read_dataset(tmp_path).cases
    assert [(case.name, case.images, case.label) for case in cases] == [
        ("a", (tmp_path / "x/1.nii.gz",), tmp_path / "y/1.nii.gz"),
        ("b", (tmp_path / "x/2.nii.gz",), tmp_path / "y/2.nii"),
    ]


def test_a_json_list_gives_folds_subjects_and_validation(tmp_path):
    items = [{"image": f"{name}.nii.gz", "label": f"{name}_seg.nii.gz"} for name in "abc"]
    items[0] |= {"fold": 3, "subject": "eve", "name": "first"}
    write(tmp_path / "l.json", {"training": items[:2], "validation": items[2:], "labels": {"0": "bg", "1": "x"}})
    cases = read_dataset(tmp_path).cases
    assert [(case.name, case.subject, case.fold) for case in cases] == [
        ("b", "b", 1),
        ("c", "c", 0),
        ("first", "eve", 3),
    ]


@pytest.mark.parametrize(
    ("labels", "task", "numbers", "names"),
    [
        (["sick", "healthy", "sick"], "classification", [1, 0, 1], {0: "healthy", 1: "sick"}),
        ([10, 2, 10], "classification", [1, 0, 1], {0: "class 2", 1: "class 10"}),
        ([0.5, 2, 3], "regression", [0.5, 2.0, 3.0], {}),
    ],
)
def test_labels_that_are_no_paths_tell_the_task(tmp_path, labels, task, numbers, names):
    items = [{"image": f"{i}.nii.gz", "label": label} for i, label in enumerate(labels)]
    from_json = read_dataset(write(tmp_path / "a" / "l.json", {"training": items}))
    rows = [f"{i}.nii.gz,{label}" for i, label in enumerate(labels)]
    from_csv = read_dataset(write(tmp_path / "b" / "l.csv", "\n".join(["image,label", *rows])))
    for dataset in (from_json, from_csv):
        assert (dataset.task, dataset.class_names) == (task, names)
        assert [case.label for case in dataset.cases] == numbers
        assert [type(case.label) for case in dataset.cases] == [type(number) for number in numbers]


def test_a_table_with_subjects_folds_and_whole_targets(tmp_path):
    text = (
        "image_t1,image_pet,target,subject,fold\n1/t1.nii.gz,1/pet.nii.gz,61,eve,0\n2/t1.nii.gz,2/pet.nii.gz,59,eve,\n"
    )
    dataset = read_dataset(write(tmp_path / "ages.csv", text))
    assert (dataset.task, dataset.channel_names) == ("regression", ("T1", "PET"))
    assert [(case.name, case.subject, case.fold, case.label) for case in dataset.cases] == [
        ("1", "eve", 0, 61.0),
        ("2", "eve", None, 59.0),
    ]
    assert dataset.cases[0].images == (tmp_path / "1/t1.nii.gz", tmp_path / "1/pet.nii.gz")


def test_a_table_of_classes_by_subject(tmp_path):
    text = "image,class,subject\n/x/1.nii.gz,b,eve\n/x/2.nii.gz,a,ada\n/x/3.nii.gz,,ida\n"
    dataset = read_dataset(write(tmp_path / "l.csv", text))
    assert [(case.name, case.label) for case in dataset.cases] == [("ada", 0), ("eve", 1), ("ida", None)]


def test_classes_without_names_are_called_by_the_values_seen(tmp_path):
    for name, value in (("a", 1), ("b", 3)):
        save(tmp_path / "images" / f"{name}.nii.gz")
        save(tmp_path / "masks" / f"{name}.nii.gz", value)
    save(tmp_path / "images" / "c.nii.gz")
    save(tmp_path / "masks" / "c.nii.gz", np.full((4, 4, 4), 0.5, np.float32))  # is refused later, by its file
    assert read_dataset(tmp_path).class_names == {
        0: "background",
        1: "class 1",
        2: "unused 2",
        3: "class 3",
    }


@pytest.mark.parametrize(
    ("images", "labels", "names", "channels"),
    [
        (["img0001", "img0002"], ["label0001", "label0002"], ["0001", "0002"], ("channel 0",)),
        (["volume-0", "volume-1"], ["segmentation-0", "segmentation-1"], ["0", "1"], ("channel 0",)),
        (["a_0000", "a_0001", "b_0000", "b_0001"], ["a", "b"], ["a", "b"], ("channel 0", "channel 1")),
        (["a_1_t1", "a_1_flair", "a_10_t1", "a_10_flair"], ["a_1", "a_10"], ["a_1", "a_10"], ("FLAIR", "T1")),
        (["p.1_ct", "p.2_ct"], ["p.1_seg", "p.2_seg"], ["p.1", "p.2"], ("CT",)),
        (["a_ct", "b_ct"], ["a_ct", "b_ct"], ["a_ct", "b_ct"], ("CT",)),
    ],
)
def test_names_of_two_folders(tmp_path, images, labels, names, channels):
    for folder, stems in (("images", images), ("labels", labels)):
        for stem in stems:
            save(tmp_path / folder / f"{stem}.nii.gz")
    dataset = read_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == names
    assert dataset.channel_names == channels
    assert all(path.is_file() for case in dataset.cases for path in (*case.images, case.label))


def test_unpaired_files_of_two_folders_are_cases(tmp_path):
    for name in ("images/a_T1.nii.gz", "images/b_T1.nii.gz", "labels/a.nii.gz", "labels/c.nii.gz"):
        save(tmp_path / name)
    cases = {case.name: case for case in read_dataset(tmp_path).cases}
    assert cases["b"].label == tmp_path / "labels/b.nii.gz"
    assert cases["c"].images == (tmp_path / "images/c_T1.nii.gz",)


def test_channels_of_one_file_are_counted(tmp_path):
    for name in "ab":
        save(tmp_path / "images" / f"{name}.nii.gz", np.zeros((4, 4, 4, 3), np.uint8))
        save(tmp_path / "labels" / f"{name}.nii.gz")
    assert read_dataset(tmp_path).channel_names == ("channel 0", "channel 1", "channel 2")


def bids(root, labels, images):
    for name in labels:
        subject, *session = [part for part in name.split("_") if part[:3] in ("sub", "ses")]
        save(root.joinpath("derivatives/m", subject, *session, f"{name}.nii.gz"))
    for name in images:
        subject, *session = [part for part in name.split("_") if part[:3] in ("sub", "ses")]
        save(root.joinpath(subject, *session, "anat", f"{name}.nii.gz"))
    return root


def test_bids_sessions_are_cases_of_a_subject(tmp_path, caplog):
    images = [f"sub-{s}_ses-{t}_{c}" for s in "12" for t in "ab" for c in ("T1w", "acq-low_T2w")]
    root = bids(tmp_path, ["sub-1_ses-a_dseg", "sub-1_ses-b_dseg", "sub-2_ses-a_dseg"], [*images, "sub-1_ses-a_FLAIR"])
    dataset = read_dataset(root)
    assert dataset.channel_names == ("T1w", "acq-low_T2w")
    assert [(case.name, case.subject, case.section) for case in dataset.cases] == [
        ("sub-1_ses-a", "sub-1", "training"),
        ("sub-1_ses-b", "sub-1", "training"),
        ("sub-2_ses-a", "sub-2", "training"),
        ("sub-2_ses-b", "sub-2", "testing"),
    ]
    assert dataset.cases[0].images[0] == root / "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz"
    assert "FLAIR" in caplog.text
    assert read_dataset(root / "derivatives/m") == dataset


def test_runs_of_bids_sessions(tmp_path, caplog):
    """A run's label map has that run's images, or those without a run; other sessions have the first."""
    labels = ["sub-1_run-2_dseg", "sub-1_run-10_dseg", "sub-2_space-T1w_dseg"]
    runs = [f"sub-{s}_run-{r}_T1w" for s in "123" for r in ("2", "10")]
    root = bids(tmp_path, labels, [*runs, *[f"sub-{s}_FLAIR" for s in "123"], "sub-1_defacemask"])
    dataset = read_dataset(root)
    assert dataset.channel_names == ("FLAIR", "T1w")
    assert [(case.name, case.subject, case.section, case.images[1].name) for case in dataset.cases] == [
        ("sub-1_run-10", "sub-1", "training", "sub-1_run-10_T1w.nii.gz"),
        ("sub-1_run-2", "sub-1", "training", "sub-1_run-2_T1w.nii.gz"),
        ("sub-2", "sub-2", "training", "sub-2_run-2_T1w.nii.gz"),
        ("sub-3", "sub-3", "testing", "sub-3_run-2_T1w.nii.gz"),
    ]
    assert [case.images[0].name for case in dataset.cases[:2]] == ["sub-1_FLAIR.nii.gz"] * 2
    assert "T1w: several runs in a session, of which the first is taken" in caplog.text


BRATS = {"BraTS20_Training_{:03d}": ("_t1", "_t1ce", "_t2", "_flair", "_seg"),
         "BraTS-GLI-{:05d}-000": ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")}  # fmt: skip


@pytest.mark.parametrize("group", ["", "HGG"])
@pytest.mark.parametrize("form", BRATS)
def test_brats(tmp_path, form, group):
    for number in range(3):
        case = form.format(number)
        for value, suffix in enumerate(BRATS[form][: 5 if number else 4]):
            save(tmp_path / group / case / f"{case}{suffix}.nii.gz", value)
    dataset = read_dataset(tmp_path)
    assert dataset.channel_names == ("FLAIR", "T1ce", "T1w", "T2w")
    assert dataset.class_names == {0: "background", 4: "class 4"}
    assert [case.section for case in dataset.cases] == ["training", "training", "testing"]
    for case in dataset.cases:
        assert [np.unique(nib.load(path).dataobj).tolist() for path in case.images] == [[3], [1], [0], [2]]
    chosen = read_dataset(tmp_path, channels=["T2w", "T1w"])
    assert chosen.channel_names == ("T2w", "T1w")
    assert [case.images for case in chosen.cases] == [case.images[:1:-1] for case in dataset.cases]


def test_later_scans_of_a_brats_subject_are_of_that_subject(tmp_path):
    for case in ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000"):
        for suffix in ("t1n", "seg"):
            save(tmp_path / case / f"{case}-{suffix}.nii.gz")
    subjects = [case.subject for case in read_dataset(tmp_path).cases]
    assert subjects == ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00006"]


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        (["T1.nii.gz", "flair.nii.gz", "seg.nii.gz"], ("FLAIR", "T1w")),
        (["{}.nii.gz", "{}_mask.nii.gz"], ("channel 0",)),
        (["{}_t1.nii.gz", "{}_t1n.nii.gz", "{}_seg.nii.gz"], ("t1", "t1n")),  # not two channels of one name
        (["{}_t1.nii.gz", "{0}.x.nii.gz", "label.nii"], ("T1w", "x")),
    ],
)
def test_names_in_case_folders(tmp_path, names, channels):
    for case in ("a", "b"):
        for name in names:
            save(tmp_path / case / name.format(case))
    dataset = read_dataset(tmp_path)
    assert (dataset.channel_names, [case.name for case in dataset.cases]) == (channels, ["a", "b"])
    assert all(path.is_file() for case in dataset.cases for path in (*case.images, case.label))


def test_a_channel_that_few_case_folders_have_is_left_out_and_one_that_a_case_lacks_is_listed(tmp_path, caplog):
    for case, suffixes in (("a", "t1 t2 x"), ("b", "t1 t2"), ("c", "t1")):
        for suffix in (*suffixes.split(), "seg"):
            save(tmp_path / case / f"{case}_{suffix}.nii.gz")
    dataset = read_dataset(tmp_path)
    assert dataset.channel_names == ("T1w", "T2w")
    assert dataset.cases[2].images == (tmp_path / "c/c_t1.nii.gz", tmp_path / "c/c_t2.nii.gz")
    assert "x: images of few cases" in caplog.text


NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def nnunet(root, **changes):
    save(root / "imagesTr/a_0000.nii.gz")
    return write(root / "dataset.json", {**NNUNET, **changes})


MISTAKES = {
    "nothing there": (lambda r: r / "none", "none: no such file or folder"),
    "empty": (lambda r: r, "an empty folder; none of the expected layouts: nnunet .*json .*bids .*csv .*folders"),
    "other files": (lambda r: save(r / "x.nii.gz") or r, r"a folder with x.nii.gz; none of the"),
    "above": (
        lambda r: [nnunet(r / "raw" / name) for name in ("Dataset001_A", "Dataset002_B")]
        and write(r / "raw/c/l.json", "{") and r / "raw",
        r"Give one of the data sets in it: \S+/raw/Dataset001_A, \S+/raw/Dataset002_B\.$",
    ),
    "region": (lambda r: nnunet(r, labels={"background": 0, "tumour": [1, 2]}), r"'tumour' is a region of .*\[1, 2\]"),
    "ignore": (lambda r: nnunet(r, labels={"background": 0, "a": 1, "ignore": 2}), "ignore label"),
    "ending": (lambda r: nnunet(r, file_ending=".nrrd"), "file_ending is '.nrrd'; .nii.gz or .nii"),
    "no channels": (lambda r: nnunet(r, channel_names={}), "no channel_names"),
    "channels from 1": (lambda r: nnunet(r, channel_names={"1": "CT"}), "channel_names: {'1': 'CT'}; names of"),
    "no labels": (lambda r: nnunet(r, labels=None), "labels: None"),
    "twice a value": (lambda r: nnunet(r, labels={"0": "a", "b": 0}), "'b': 0; a name and a value"),
    "not JSON": (lambda r: write(r / "dataset.json", "{"), "dataset.json: not JSON"),
    "no image": (lambda r: write(r / "l.json", {"training": [{"label": "a"}]}), r"training\[0\] is {'label': 'a'}"),
    "no path": (lambda r: write(r / "l.json", {"training": [{"image": [3]}]}), r"image \[3\]; a path, or a list"),
    "fold": (lambda r: write(r / "l.json", {"training": [{"image": "a.nii", "fold": "x"}]}), "fold 'x' of a"),
    "two lists": (
        lambda r: [write(r / f"{n}.json", {"training": [{"image": "a.nii"}]}) for n in "ab"] and r,
        "a.json and b.json list cases",
    ),
    "mixed labels": (
        lambda r: write(r / "l.csv", "image,label\na.nii,b.nii\nc.nii,3\n"),
        "l.csv, column label: label '3' of c, but a has a label map",
    ),
    "no column": (lambda r: write(r / "l.csv", "path,label\na.nii,1\n"), r"columns path, label; image \(or image_\*\)"),
    "semicolons": (lambda r: write(r / "l.csv", "image;label\na.nii;1\n"), "columns image;label; image .* commas"),
    "no rows": (lambda r: write(r / "l.csv", "image,label\n"), "no rows"),
    "two columns": (lambda r: write(r / "l.csv", "image,image,label\na,b,1\n"), "two columns 'image'"),
    "long row": (lambda r: write(r / "l.csv", "image,label\na.nii,1,2\n"), "line 2: 3 cells"),
    "empty image": (lambda r: write(r / "l.csv", "image,label\n,1\n"), "line 2, column image is empty"),
    "section": (lambda r: write(r / "l.csv", "image,label,section\na.nii,1,tst\n"), "line 2: section 'tst'"),
    "fold of a row": (lambda r: write(r / "l.csv", "image,label,fold\na.nii,1,-1\n"), "line 2: fold '-1'"),
    "target": (lambda r: write(r / "l.csv", "image,target\na.nii,old\n"), "column target: target 'old' of a"),
    "same name": (lambda r: write(r / "l.csv", "image,name,label\na.nii,x,1\nb.nii,x,0\n"), "two cases are called 'x'"),
    "only tests": (lambda r: write(r / "l.csv", "image,label,section\na.nii,,test\n"), "no case to train with"),
    "unlike names": (
        lambda r: [save(r / "images/a.nii.gz"), save(r / "labels/b.nii.gz")] and r,
        r"no label has an image's name \(.*a.nii.gz, .*b.nii.gz\)",
    ),
    "both compressed and not": (
        lambda r: [save(r / "images/a.nii.gz"), save(r / "images/a.nii"), save(r / "labels/a.nii.gz")] and r,
        "one of the two is expected",
    ),
    "two derivatives": (
        lambda r: [save(r / f"derivatives/{n}/sub-1/sub-1_dseg.nii.gz") for n in "ab"] and r,
        "derivatives/a, .*derivatives/b with",
    ),
    "two maps": (
        lambda r: bids(r, ["sub-1_desc-a_dseg", "sub-1_desc-b_dseg"], ["sub-1_T1w"]),
        "sub-1_desc-a_dseg.nii.gz is of the same session",
    ),
    "no raw images": (lambda r: bids(r, ["sub-1_dseg"], []), "no image of the sessions with label maps"),
    "two maps of a case": (
        lambda r: [save(r / f"a/a_{n}.nii.gz") for n in ("t1", "seg", "mask")] and r,
        "a_seg.nii.gz: a_mask.nii.gz is of the same case",
    ),
    "unlike names of cases": (
        lambda r: [save(r / f"{c}/{n}.nii.gz") for c in "abc" for n in (f"{c}x1", "seg")] and r,
        "no common names",
    ),
    "columns of dseg.tsv": (
        lambda r: write(r / "dseg.tsv", "value\tname\n1\ta\n") and bids(r, ["sub-1_dseg"], ["sub-1_T1w"]),
        r"columns \['value', 'name'\]; index and name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(tmp_path, mistake):
    make, message = MISTAKES[mistake]
    path = make(tmp_path)
    with pytest.raises(DatasetError, match=message) as refused:
        read_dataset(path)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(UsageError, match="layout='nnUNet'; one of nnunet, json, bids, csv, folders"):
        read_dataset(tmp_path, "nnUNet")


@pytest.mark.parametrize(
    ("layout", "channels", "message"),
    [
        ("bids", ["T1w"], "channels=T1w: expected names of channels, each once; .* has CT, PET"),
        ("bids", ["CT", "CT"], "channels=CT: expected names of channels, each once"),
        ("decathlon", ["CT"], "channels=CT: .* has all channels in one file"),
    ],
)
def test_channels_that_cannot_be_chosen(tmp_path, layout, channels, message):
    root = write_toy(tmp_path, layout, **SMALL)
    with pytest.raises(UsageError, match=message):
        read_dataset(root, channels=channels)
