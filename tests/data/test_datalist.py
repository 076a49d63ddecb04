"""datalist: which cases of a split train, validate and test, and what is wrong with a split file."""

import json

import pytest

from monai_vit3d.data import DatasetError, datalist, folds_of


def _write(root, training=(("a", 0), ("b", 1), ("c", 0)), testing=("t",)):
    """A split file and its files; returns its path."""

    def entry(name, fold):
        for folder in ("images", "labels"):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / f"{name}.nii.gz").touch()
        paths = {"image": [f"images/{name}.nii.gz"], "label": f"labels/{name}.nii.gz"}
        return {"name": name, "subject": f"s{name}", "fold": fold, **paths}

    split = {"data_root": str(root), "training": [entry(*pair) for pair in training]}
    split["testing"] = [entry(name, None) for name in testing]
    path = root / "split.json"
    path.write_text(json.dumps(split))
    return path


@pytest.mark.parametrize(
    ("section", "fold", "names"),
    [
        ("training", 0, ["b"]),
        ("validation", 0, ["a", "c"]),
        ("training", 1, ["a", "c"]),
        ("training", None, ["a", "b", "c"]),
        ("testing", 1, ["t"]),
    ],
)
def test_sections(section, fold, names, tmp_path):
    items = datalist(_write(tmp_path), section, fold)
    assert [item["name"] for item in items] == names
    assert items[0]["image"] == [str(tmp_path / "images" / f"{names[0]}.nii.gz")]
    assert items[0]["label"] == str(tmp_path / "labels" / f"{names[0]}.nii.gz")
    assert items[0]["subject"] == f"s{names[0]}"
    assert ("fold" in items[0]) == (section != "testing")  # a batch cannot hold None
    assert folds_of(tmp_path / "split.json") == [0, 1]


def test_data_that_were_moved_are_found_by_dataset_dir(tmp_path):
    (tmp_path / "old").mkdir()
    split = _write(tmp_path / "old").read_text()
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "split.json").write_text(split)
    with pytest.raises(DatasetError, match=r"no such file, and 4 of 4 files of 'validation'.*Give dataset_dir"):
        datalist(tmp_path / "split.json", "validation", 0)
    assert len(datalist(tmp_path / "split.json", "validation", 0, tmp_path / "new")) == 2


def test_a_number_is_a_label(tmp_path):
    entry = {"name": "a", "subject": "a", "fold": 0, "image": ["images/a.nii.gz"], "label": 1}
    path = _write(tmp_path, training=[("a", 0)])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "training": [entry]}))
    assert datalist(path, "validation", 0)[0]["label"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("validation", 2), r"fold=2; the training cases have folds \[0, 1\]"),
        (("test", 0), "section 'test'; expected one of training, validation, testing"),
    ],
)
def test_what_is_not_there_is_named(arguments, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        datalist(_write(tmp_path), *arguments)


def test_one_fold_trains_nothing(tmp_path):
    with pytest.raises(DatasetError, match=r"no cases for 'training'. All cases are in fold 0: expected two folds"):
        datalist(_write(tmp_path, training=[("a", 0), ("b", 0)]), "training", 0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"training": "a"}, "it.training is 'a'; a list is expected"),
        ({"training": [{"name": "a"}]}, "a has no 'subject'"),
        ({"testing": [{"name": 3}]}, "it.testing.0..name is 3; text is expected"),
        ({"data_root": None}, "it.data_root is None; text is expected"),
    ],
)
def test_another_form_is_refused(other, message, tmp_path):
    path = _write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **other}))
    with pytest.raises(DatasetError, match=f"split.json: {message}"):
        datalist(path, "training", 0)


def test_a_file_that_is_not_json(tmp_path):
    (tmp_path / "split.json").write_text("a,b")
    with pytest.raises(DatasetError, match=r"split.json: not JSON .*; expected a split.json of `vit3d init`"):
        folds_of(tmp_path / "split.json")
    with pytest.raises(DatasetError, match=r"none.json: cannot be read"):
        folds_of(tmp_path / "none.json")
