"""Labelled volumes of a CSV file, every fault with its file and line; balanced weights; classes that AUC needs."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data import DatasetError, check_classes, class_balanced_weights, labelled_volumes, resolve_task

NAMES = ["liver", "spleen", "10"]


@pytest.fixture
def table(tmp_path):
    """Writer of a CSV file beside the volumes a.nii.gz, b.nii and sub/c.nii.gz."""
    (tmp_path / "sub").mkdir()
    for name in ("a.nii.gz", "b.nii", "sub/c.nii.gz", "d.txt"):
        (tmp_path / name).touch()

    def write(text, encoding="utf-8"):
        (tmp_path / "set.csv").write_bytes(text.encode(encoding))
        return tmp_path / "set.csv"

    return write


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("multi-class", "multi-class"),
        ("binary-class", "multi-class"),
        ("multi-label", "multi-label"),
        ("multi-label, binary-class", "multi-label"),
        ("ordinal", "ordinal"),
        ("ordinal-regression", "ordinal"),
        ("regression", "regression"),
    ],
)
def test_tasks(name, task):
    assert resolve_task(name) == task
    with pytest.raises(ValueError, match=f"'{name}x'.*'{name}'"):
        resolve_task(f"{name}x")


# volumes


@pytest.mark.parametrize("task", ["multi-class", "binary-class", "ordinal", "ordinal-regression"])
def test_names_before_numbers_in_order(table, tmp_path, task):
    path = table("age,path,label\n3,sub/c.nii.gz,spleen\n\n,a.nii.gz,0\n,,\n9,./b.nii,10\n")
    assert labelled_volumes(path, task, NAMES) == [
        {"image": str(tmp_path / "sub/c.nii.gz"), "label": 1, "name": "sub/c.nii.gz"},
        {"image": str(tmp_path / "a.nii.gz"), "label": 0, "name": "a.nii.gz"},
        {"image": str(tmp_path / "b.nii"), "label": 2, "name": "./b.nii"},
    ]


def test_numbers_alone_and_another_folder(table, tmp_path, monkeypatch):
    path = table(f"path,label\nc.nii.gz,7\n{tmp_path}/b.nii,0\n")
    expected = [(str(tmp_path / "sub/c.nii.gz"), 7), (str(tmp_path / "b.nii"), 0)]
    assert [(v["image"], v["label"]) for v in labelled_volumes(path, image_dir=tmp_path / "sub")] == expected
    monkeypatch.chdir(tmp_path)
    assert [(v["image"], v["label"]) for v in labelled_volumes("set.csv", image_dir="sub")] == expected


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,label\r\na.nii.gz,liver\r\n", "utf-8-sig"),
        (' path , label\n"a.nii.gz", liver \n', "utf-8"),
        ("label,path\rliver,a.nii.gz\r", "utf-8"),
        ("path,label,remark\na.nii.gz,liver\n", "utf-8"),
        ("\n\npath,label\na.nii.gz,liver,,\n", "utf-8"),
    ],
    ids=["excel", "spaces", "old mac", "short row", "empty cells at the end"],
)
def test_what_programs_write(table, text, encoding):
    (volume,) = labelled_volumes(table(text, encoding), class_names=NAMES)
    assert (volume["name"], volume["label"]) == ("a.nii.gz", 0)


@pytest.mark.parametrize("task", ["multi-label", "multi-label, binary-class"])
def test_multi_label_columns_go_by_name(table, task):
    volumes = labelled_volumes(table("10,spleen,path,liver\n1,0,a.nii.gz,0\n0,1,b.nii,1\n"), task, NAMES)
    assert [v["label"].tolist() for v in volumes] == [[0, 0, 1], [1, 1, 0]]
    assert {v["label"].dtype for v in volumes} == {np.dtype(np.float32)}


def test_regression(table):
    volumes = labelled_volumes(table("path,label\na.nii.gz,-1.5e2\nb.nii,7\n"), "regression")
    assert [v["label"].tolist() for v in volumes] == [[-150], [7]]
    assert {(v["label"].dtype, v["label"].shape) for v in volumes} == {(np.dtype(np.float32), (1,))}


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("", "multi-class", ": no rows.*path,label"),
        ("path,label\n\n", "multi-class", ": no rows"),
        ("path;label\na.nii.gz;0\n", "multi-class", r", line 1: no columns 'path' among .*path;label.* commas"),
        ("\npath,Label\na.nii.gz,0\n", "multi-class", ", line 2: no columns 'label'"),
        ("path,label,label\na.nii.gz,0,1\n", "multi-class", ", line 1: 2 columns 'label'"),
        ("path,liver,10\na.nii.gz,0,1\n", "multi-label", ", line 1: no columns 'spleen'"),
        ("path,label\na.nii.gz,0\n\nb.nii, \n", "multi-class", ", line 4: column 'label' is empty"),
        ("path,label\n,0\n", "multi-class", ", line 2: column 'path' is empty"),
        ("label,path\n0\n", "multi-class", ", line 2: column 'path' is empty"),
        ("path,label\na.nii.gz,liver,left\n", "multi-class", ", line 2: 3 cells; the header has 2"),
        (
            "path,label\na.nii.gz,0\nb.nii,heart\n",
            "multi-class",
            ", line 3: label 'heart'; expected one of liver, spleen, 10",
        ),
        ("path,label\na.nii.gz,3\n", "ordinal", ", line 2: label '3'.* from 0 to 2"),
        ("path,label\na.nii.gz,-1\n", "multi-class", ", line 2: label '-1'"),
        ("path,label\na.nii.gz,1.0\n", "multi-class", ", line 2: label '1.0'"),
        ("path,liver,spleen,10\na.nii.gz,0,1,2\n", "multi-label", ", line 2: 10 is '2'; expected 0 or 1"),
        ("path,liver,spleen,10\na.nii.gz,0,,1\n", "multi-label", ", line 2: column 'spleen' is empty"),
        ("path,label\na.nii.gz,nan\n", "regression", ", line 2: label 'nan'; expected a finite number"),
        ("path,label\na.nii.gz,1\nb.nii,-inf\n", "regression", ", line 3: label '-inf'"),
        ("path,label\na.nii.gz,1e39\n", "regression", ", line 2: label '1e39'"),
        ("path,label\na.nii.gz,old\n", "regression", ", line 2: label 'old'"),
        (
            "path,label\na.nii.gz,0\nx.nii,0\ny.nii,1\n",
            "multi-class",
            ", line 3: 2 of 3 .*first is .*/x.nii.*image_dir",
        ),
        (
            "path,label\na.nii.gz,0\nb.nii,0\nsub/../a.nii.gz,1\n",
            "multi-class",
            ", line 4: sub.* is the file of line 2",
        ),
        ("path,label\nd.txt,0\n", "multi-class", ", line 2: d.txt is no NIfTI file"),
        ('path,label\na.nii.gz,0\nb.nii,"1\n', "multi-class", ", line 3: not CSV"),
    ],
)
def test_faults_are_named_with_their_line(table, text, task, message):
    with pytest.raises(DatasetError, match=f"{re.escape(str(table(text)))}{message}"):
        labelled_volumes(table(text), task, NAMES)


def test_a_link_to_a_listed_file_is_the_same_file(table, tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    with pytest.raises(DatasetError, match=r"line 3: link.nii.gz is the file of line 2"):
        labelled_volumes(table("path,label\na.nii.gz,0\nlink.nii.gz,0\n"))


def test_not_utf8_is_named_with_its_line(table):
    with pytest.raises(DatasetError, match=r"set.csv, line 3: not UTF-8"):
        labelled_volumes(table("path,label\na.nii.gz,0\nb.nii,Rücken\n", "cp1252"))


def test_absent_csv(tmp_path):
    with pytest.raises(DatasetError, match=r"none.csv: no such file"):
        labelled_volumes(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("task", "names"), [("multi-label", None), ("multi-label", []), ("multi-class", ["a", "a"]), ("guess", None)]
)
def test_bad_arguments(table, task, names):
    with pytest.raises(ValueError, match=r"class_names=|task='guess'"):
        labelled_volumes(table("path,label\na.nii.gz,0\n"), task, names)


# labels


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_each_class_weighs_the_same(labels):
    weights = class_balanced_weights(labels)
    assert (weights.dtype, weights.shape) == (torch.float64, (len(labels),))
    assert weights.mean().item() == pytest.approx(1)
    sums = [weights[torch.tensor(labels) == c].sum().item() for c in set(labels)]
    assert sums == pytest.approx([len(labels) / len(sums)] * len(sums))


def test_vectors_weigh_by_distinct_vector():
    vectors = [[0, 1], [0, 1], [1, 1], [0, 1]]
    expected = class_balanced_weights([0, 0, 1, 0])
    for labels in (
        vectors,
        [np.float32(v) for v in vectors],
        torch.tensor(vectors),
        [torch.tensor(v) for v in vectors],
    ):
        assert torch.equal(class_balanced_weights(labels), expected)
    assert expected.tolist() == pytest.approx([2 / 3, 2 / 3, 2, 2 / 3])


def test_weights_draw_each_class_equally_often():
    labels = [0] * 90 + [1] * 10
    generator = torch.Generator().manual_seed(0)
    drawn = torch.utils.data.WeightedRandomSampler(class_balanced_weights(labels), 4000, generator=generator)
    counts = Counter(labels[i] for i in drawn)
    assert counts[1] == pytest.approx(2000, abs=5 * 32)  # five standard deviations of a fair coin


def test_no_labels_have_no_weights():
    with pytest.raises(ValueError, match="expected one or more"):
        class_balanced_weights([])


@pytest.mark.parametrize(
    ("labels", "count", "names", "message"),
    [
        ([0, 1, 1], 3, NAMES, r"no sample of 10 \(1 of 3 classes\).*AUC needs"),
        ([1, 1], 3, None, r"no sample of class 0, class 2 \(2 of 3"),
        ([], 2, None, "with 0 samples has no sample of class 0, class 1"),
        ([0, 0], 1, ["liver"], "only one class, liver"),
        ([0, 3, 1, 2], 3, NAMES, "label 3; expected 0 to 2"),
        ([-1, 0, 1], 2, None, "label -1"),
        ([[0, 1], [1, 1]], 2, ["cyst", "stone"], "no sample of stone = 0"),
        ([[0, 0], [0, 1]], 2, None, "no sample of class 0 = 1"),
        ([[0, 2], [1, 1]], 2, None, "label 2; expected 0 to 1"),
        ([[0, 1], [1, 0]], 3, None, r"labels \(2, 2\) for 3 classes"),
        ([0, 1], 2, NAMES, "3 names and .* 2 classes"),
    ],
)
def test_missing_classes_are_named(labels, count, names, message):
    with pytest.raises(DatasetError, match=f"section 'val'.*{message}"):
        check_classes(labels, count, "val", names)


def test_enough_classes_pass():
    check_classes([2, 0, 1, 1], 3, "val", NAMES)
    check_classes(torch.tensor([1, 0]), 2, "val")
    check_classes([np.float32([0, 1]), np.float32([1, 0])], 2, "val")
    check_classes([[0.0], [1.0]], 1, "val")
