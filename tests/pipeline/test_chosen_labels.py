"""Labels chosen by name, and a file for each label, by the command and in Python."""

import json

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d import Predictor
from monai_vit3d.bundle.value_names import ValueNames
from monai_vit3d.data.errors import BundleError, UsageError
from monai_vit3d.pipeline.chosen_labels import choose_labels, keep_labels
from monai_vit3d.pipeline.folder import plan_folder, predict_folder
from tests.data.test_mesh_files import read_ply, read_stl
from tests.pipeline.tiny import METADATA, predict, products, records, statuses, write_bundle, write_images

EACH = ["--split", "--mesh", "stl"]


class _Bundle:
    """The names of a bundle."""

    def __init__(self, names, followed=(), classifies=False):
        self.metadata = type("Metadata", (), {"name": "b", "output_channels": 9, "classifies": classifies})()
        self.names = ValueNames(names, frozenset(followed))

    def value_names(self, classes):
        assert classes == 9
        return self.names


BRAIN = _Bundle({0: "background", 1: "Left Hippocampus", 2: "right-hippocampus", 4: "CSF", 5: "csf"}, {1, 2, 3, 4, 5})


@pytest.mark.parametrize(
    ("only", "values"),
    [
        ((), [1, 2, 3, 4, 5]),
        (("left_hippocampus",), [1]),
        ("LEFT hippocampus", [1]),
        (("right hippocampus", "1"), [1, 2]),
        ((4, 3), [3, 4]),
        (3, [3]),
        (("label 3",), [3]),
        (("csf",), [4, 5]),
        ("left", [1]),
        (("Right", 4), [2, 4]),
    ],
)
def test_labels_by_name_and_value(only, values):
    assert [label.value for label in choose_labels(BRAIN, only)] == values


def test_sides_are_of_pairs_and_a_label_of_that_name_goes_before():
    names = {1: "L1 vertebra", 2: "kidney_L", 3: "kidney_R", 4: "lh-cuneus", 5: "rh-cuneus", 6: "left ventricle"}
    assert [[label.value for label in choose_labels(_Bundle(names), side)] for side in ("left", "right")] == [
        [2, 4],
        [3, 5],
    ]
    assert [label.value for label in choose_labels(_Bundle({**names, 7: "left"}), "left")] == [7]
    with pytest.raises(UsageError, match="only=left: b has no such label"):
        choose_labels(_Bundle({1: "L1 vertebra", 2: "left ventricle"}), "left")


def test_names_of_files_are_simple_and_all_different():
    names = {1: "a b", 2: "A_b", 3: "ab", 4: "../x", 5: "!", 6: "Größe", 7: "x" * 300, 8: "x" * 301}
    stems = [label.stem for label in choose_labels(_Bundle(names))]
    assert stems[3:6] == ["x", "label_5", "Größe"]
    assert len({stem.replace("_", "").casefold() for stem in stems}) == len(names)
    assert max(map(len, stems)) < 70


@pytest.mark.parametrize(
    ("bundle", "only", "message"),
    [
        (BRAIN, ["left hipocampus"], r"only=left hipocampus: b has no such label\. Did you mean Left Hippocampus\?"),
        (BRAIN, ["hipocampus"], r"Did you mean Left Hippocampus or right-hippocampus\?"),
        (BRAIN, ["rigth"], r"Did you mean right-hippocampus\?"),
        (BRAIN, ["9"], r"only=9: b has no such label\. Expected some of 1 Left Hippocampus, 2 right-hippocampus, 3 "),
        (BRAIN, ["0"], "b has no such label"),
        (BRAIN, [""], "b has no such label"),
        (_Bundle({}), [], "b does not name its labels. Give their values, as only=1,2"),
        (_Bundle({}), ["1", "liver"], "b does not name its labels"),
        (_Bundle({0: "a"}, classifies=True), [], "b: classifies whole volumes"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(bundle, only, message):
    with pytest.raises(UsageError, match=message):
        choose_labels(bundle, only)


def test_values_of_a_bundle_without_names():
    assert [(one.value, one.stem) for one in choose_labels(_Bundle({}), ["7", "2"])] == [(2, "label_2"), (7, "label_7")]


def test_others_become_background():
    labels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    kept = keep_labels(labels, [3, 20])
    assert kept.dtype == np.uint16
    assert {int(value): int((kept == value).sum()) for value in np.unique(kept)} == {0: 22, 3: 1, 20: 1}
    masks = np.ones((3, 2, 2, 2), np.uint8)
    assert keep_labels(masks, [2]).sum(axis=(1, 2, 3)).tolist() == [0, 8, 0]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    write_images(folder, 2)
    return folder


@pytest.fixture(scope="module")
def each(tmp_path_factory, scans, tiny_bundle):
    """OUT of a run with a file for each label."""
    out = tmp_path_factory.mktemp("each") / "out"
    assert predict(scans, to=out, bundle=tiny_bundle, options=EACH) == 0
    return out


def test_a_file_for_each_label_on_the_file_s_grid(each, scans):
    for name in ("case00", "case01"):
        whole = nib.load(each / f"{name}_seg.nii.gz")
        for value, label in ((1, "grey"), (2, "white")):
            part = nib.load(each / f"{name}_seg-{label}.nii.gz")
            assert part.get_data_dtype() == np.uint8
            np.testing.assert_array_equal(part.dataobj, np.asarray(whole.dataobj) == value)
            np.testing.assert_array_equal(part.affine, nib.load(scans / f"{name}.nii.gz").affine)


def test_meshes_hold_what_the_table_says(each):
    for name, record in records(each).items():
        for row in record["stats"]:
            corners, _ = read_stl(each / f"{name}_seg-{row['name']}.stl")
            assert np.linalg.det(corners).sum() / 6000 == pytest.approx(row["volume_ml"], rel=0.02)


@pytest.mark.slow
def test_the_record_has_all_files_and_resume_verifies_them(each, scans, tiny_bundle, tmp_path):
    before = products(each)
    for name, record in records(each).items():
        parts = {f"{name}_seg-{label}{suffix}" for label in ("grey", "white") for suffix in (".nii.gz", ".stl")}
        assert set(record["outputs"]) == {f"{name}_seg.nii.gz", f"qc/{name}.png", *parts}
    again = ["--resume", *EACH]
    assert predict(scans, to=each, bundle=tiny_bundle, options=again) == 0
    assert set(statuses(each).values()) == {"skipped"}
    (each / "case01_seg-grey.stl").unlink()
    assert predict(scans, to=each, bundle=tiny_bundle, options=again) == 0
    assert statuses(each) == {"case00": "skipped", "case01": "done"}
    assert products(each) == before


@pytest.mark.slow
def test_only_one_label(tmp_path, scans, each, tiny_bundle):
    out = tmp_path / "out"
    options = ["--only", "WHITE", "--mesh", "ply"]
    assert predict(scans / "case00.nii.gz", to=out, bundle=tiny_bundle, options=options) == 0
    whole = np.asarray(nib.load(each / "case00_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(nib.load(out / "case00_seg.nii.gz").dataobj, np.where(whole == 2, 2, 0))
    record = records(out)["case00"]
    assert record["stats"] == [row for row in records(each)["case00"]["stats"] if row["label"] == 2]
    assert (out / "volumes.csv").read_text().startswith("filename,white ml\n")
    assert json.loads((out / "run.json").read_text())["options"]["only"] == [2]
    assert [path.name for path in out.glob("*_seg-*")] == ["case00_seg-white.ply"]
    assert np.linalg.det(read_ply(out / "case00_seg-white.ply")).sum() > 0


def test_the_same_in_memory(scans, each, tiny_bundle):
    image = nib.load(scans / "case00.nii.gz")
    labels = Predictor(tiny_bundle, "cpu", safe=True, only=["grey"]).predict(image)
    np.testing.assert_array_equal(labels.dataobj, np.asarray(nib.load(each / "case00_seg.nii.gz").dataobj) == 1)


@pytest.mark.slow
def test_a_label_without_a_voxel_has_an_empty_mask_and_no_mesh(tmp_path, scans, tiny_bundle):
    bundle, scan, out = write_bundle(tmp_path / "tiny", second=10.0), scans / "case00.nii.gz", tmp_path / "out"
    out.mkdir()
    (out / "case00_seg-white.stl").write_bytes(b"of an earlier run")
    assert predict(scan, to=out, bundle=bundle, options=["--overwrite", *EACH]) == 0
    assert not (out / "case00_seg-white.stl").exists()
    assert np.asarray(nib.load(out / "case00_seg-white.nii.gz").dataobj).max() == 0
    assert predict(scan, to=out, bundle=bundle, options=["--resume", *EACH]) == 0
    assert statuses(out) == {"case00": "skipped"}


def test_bids_names(tmp_path, scans, tiny_bundle):
    folder = tmp_path / "data" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_T1w.nii.gz").write_bytes((scans / "case00.nii.gz").read_bytes())
    (tmp_path / "data" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    plan = plan_folder(tmp_path / "data", tmp_path / "out", tiny_bundle, only="grey", split=True, mesh="ply", safe=True)
    (case,) = plan.cases
    assert [case.path(kind).name for kind in plan.outputs] == [
        "sub-01_desc-T1w_dseg.nii.gz",
        "sub-01_label-grey_desc-T1w_mask.nii.gz",
        "sub-01_label-grey_desc-T1w_mesh.ply",
    ]


def test_a_dry_run_names_the_files_and_a_clash_is_refused(tmp_path, scans, tiny_bundle, capsys):
    assert predict(scans, to=tmp_path / "out", bundle=tiny_bundle, options=["--dry-run", *EACH]) == 0
    assert f"{tmp_path / 'out' / 'case01_seg-white.stl'}" in capsys.readouterr().out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case01_seg-white.stl").touch()
    assert predict(scans, to=tmp_path / "out", bundle=tiny_bundle, options=EACH) == 2
    assert "1 of 10 outputs are there already" in capsys.readouterr().err


def test_an_unknown_name_is_2_and_writes_nothing(tmp_path, scans, tiny_bundle, capsys):
    assert predict(scans, to=tmp_path / "out", bundle=tiny_bundle, options=["--only", "whit"]) == 2
    assert "--only whit: tiny has no such label. Did you mean white? Expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="mesh=obj; expected stl or ply"):
        predict_folder(scans, tmp_path / "out", tiny_bundle, mesh="obj", safe=True)


def test_channels_that_the_metadata_do_not_tell_are_no_chosen_labels(tmp_path, scans, tiny_bundle):
    bundle = write_bundle(tmp_path / "tiny")
    told = json.loads(json.dumps(METADATA))
    told["network_data_format"]["outputs"]["pred"] |= {"num_channels": 2, "channel_def": {"0": "a", "1": "b"}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps(told))
    predictor = Predictor(bundle, "cpu", safe=True, only="b")
    with pytest.raises(BundleError, match="another number of channels"):
        predictor.predict(nib.load(scans / "case00.nii.gz"))
