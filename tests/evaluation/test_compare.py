"""Two runs of a bundle of thresholds side by side: Dice and volumes by nibabel and numpy, and what is refused."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.cli import main
from monai_vit3d.data import UsageError
from monai_vit3d.evaluation import compare_runs
from monai_vit3d.pipeline.folder import predict_folder
from tests.evaluation.folders import AFFINE, organ, write_map
from tests.pipeline.report.test_page import Page
from tests.pipeline.tiny import FIRST, SECOND, write_bundle, write_images

pytestmark = pytest.mark.slow
NAMES = {1: "grey", 2: "white"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of two runs over four images; a case of the second failed, another was not given, one is its own."""
    root = tmp_path_factory.mktemp("runs")
    images = write_images(root / "in", 4, (24, 20, 18))
    shutil.copytree(root / "in", root / "kept")
    predict_folder(root / "in", root / "a", write_bundle(root / "first"))
    images[1].write_bytes(images[1].read_bytes()[:-20])
    images[3].unlink()
    write_images(root / "more", 5, (24, 20, 18))[4].rename(root / "in" / "other.nii.gz")
    predict_folder(root / "in", root / "b0", write_bundle(root / "second", FIRST * 1.2, SECOND * 1.1))
    return root / "a", (root / "b0").rename(root / "b")  # moved since it ran


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    output = tmp_path_factory.mktemp("comparison")
    return compare_runs(*runs, output), output


def label_files(folder):
    return {path.name.removesuffix("_seg.nii.gz"): nib.load(path) for path in folder.rglob("*_seg.nii.gz")}


def test_volumes_and_dice_by_case_and_label(runs, compared):
    comparison, output = compared
    first, second = map(label_files, runs)
    with (output / "comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    assert len(rows) == 2 * len(comparison.scored) == 2 * 2
    for row in rows:
        name = row["case"].rpartition("/")[2]
        a, b = (np.asarray(files[name].dataobj) == int(row["label"]) for files in (first, second))
        voxel_ml = abs(np.linalg.det(first[name].affine[:3, :3])) / 1000
        assert row["name"] == NAMES[int(row["label"])]
        assert float(row["dice"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-5)
        assert [float(row[key]) for key in ("a_ml", "b_ml")] == pytest.approx([a.sum() * voxel_ml, b.sum() * voxel_ml])
        assert float(row["difference_ml"]) == pytest.approx((a.sum() - float(b.sum())) * voxel_ml, rel=1e-4)
        assert 0 < float(row["dice"]) < 1
    worst = [min(float(row["dice"]) for row in rows if row["case"] == one.case.name) for one in comparison.scored]
    assert worst == sorted(worst)


def test_what_one_run_alone_has(runs, compared):
    comparison, _ = compared
    reasons = {name.rpartition("/")[2]: alone for name, alone in comparison.alone.items()}
    assert sorted(letter for letter, _ in reasons.values()) == ["A", "A", "B"]
    assert [reason for _, reason in reasons.values()].count("the other run has no such case") == 2
    (failed,) = (reason for _, reason in reasons.values() if reason.startswith("failed: "))
    assert ".nii.gz" in failed
    assert reasons["other"][0] == "B"


def test_the_page_has_the_least_agreement_first(runs, compared):
    comparison, output = compared
    page = Page(output / "report.html")
    assert not page.open
    assert page.text("h1") == ["a and b"]
    assert page.text("h3") == [one.case.name for one in comparison.scored]
    assert page.text("h2") == ["Labels", "Results", "In one run only"]
    (others,) = page.text("ul", "others")
    assert others.count("only in A") == 2
    assert len(page.all("img")) == 2
    (least, *_) = sorted(comparison.scored[0].scores, key=lambda row: row.dice)
    cells = page.text("td")
    assert cells[cells.index(least.name, 3 * 6) + 4] == f"{least.dice:.3f}"  # below the table of means


def test_a_run_agrees_with_itself(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    comparison = compare_runs(runs[0], copy)
    assert {row.dice for one in comparison.scored for row in one.scores} == {1.0}
    assert comparison.page is None
    assert comparison.alone == {}


def test_cases_are_matched_by_their_images_not_by_their_names(runs, tmp_path):
    """Names are paths below what the inputs share, so those of a folder and of single files in it differ."""
    folder = runs[0].parent
    bundle, deep = folder / "first", folder / "in" / "deep" / "case02.nii.gz"
    predict_folder(deep, tmp_path / "one", bundle)
    comparison = compare_runs(runs[0], tmp_path / "one")
    assert {one.case.name: one.mean("dice") for one in comparison.scored} == {"deep/case02": 1.0}
    assert sorted(comparison.alone) == ["case00", "case01", "case03"]

    # the same names of other images: each is compared with the copy of its own
    (tmp_path / "in").mkdir()
    for old, new in (("case00", "case03"), ("case03", "case00")):
        shutil.copy(folder / "kept" / f"{old}.nii.gz", tmp_path / "in" / f"{new}.nii.gz")
    predict_folder(tmp_path / "in", tmp_path / "exchanged", bundle)
    comparison = compare_runs(runs[0], tmp_path / "exchanged")
    pairs = {one.case.name: one.case.label.name for one in comparison.scored}
    assert pairs == {"case00": "case03_seg.nii.gz", "case03": "case00_seg.nii.gz"}
    assert {row.dice for one in comparison.scored for row in one.scores} == {1.0}


def test_the_command_prints_means_and_fails_on_another_grid(runs, tmp_path, capsys):
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    path = sorted(copy.rglob("*_seg.nii.gz"))[0]
    write_map(organ(), path, AFFINE)
    assert main(["compare", str(runs[0]), str(copy), "-o", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["label", "cases", "Dice"]
    assert lines[1].startswith("all classes  3      1.000")
    assert lines[-1] == f"3 compared, 1 failed, 0 in one run only: {tmp_path / 'out' / 'report.html'}"
    assert f"{path}: labels of shape (20, 18, 10)" in err
    assert "expected one grid" in err
    assert Page(tmp_path / "out" / "report.html").text("h2") == ["Failed", "Labels", "Results"]


def test_what_is_no_pair_of_runs(runs, tmp_path):
    first, second = runs
    (tmp_path / "empty").mkdir()
    renamed = shutil.copytree(first, tmp_path / "renamed")
    record = json.loads((renamed / "run.json").read_text())
    for one in record["files"]:
        one["stats"][0]["name"] = "liver"
    (renamed / "run.json").write_text(json.dumps(record))
    bare = shutil.copytree(first, tmp_path / "bare", ignore=lambda *_: ["qc"])
    for path in bare.rglob("*_seg.nii.gz"):
        path.unlink()
    for folders, message in [
        ((first, tmp_path / "empty"), "empty: no run.json of a run; expected a folder that vit3d predict wrote"),
        ((first, renamed), r"label 1 is 'grey' in .* and 'liver' in .*; expected two runs"),
        ((bare, first), "bare: no label maps of the cases"),
        ((first, second, second), "output=.*: one of the runs; expected another folder"),
    ]:
        with pytest.raises(UsageError, match=message):
            compare_runs(*folders)


def test_no_common_case(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "other")
    text = (other / "run.json").read_text()
    record = json.loads(text)
    for one in record["files"]:
        one |= {"name": f"{one['name']}_again", "input": f"{one['input']}.gz", "input_sha256": ["0" * 64]}
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="no case with labels in both; expected two runs over the same inputs"):
        compare_runs(runs[0], other)


def test_a_record_cannot_point_out_of_its_folder(runs, tmp_path):
    outside = write_map(organ(), tmp_path / "outside_seg.nii.gz")
    run = shutil.copytree(runs[0], tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["files"][0] |= {"output": str(outside), "outputs": {"../outside_seg.nii.gz": "0" * 64}}
    (run / "run.json").write_text(json.dumps(record))
    comparison = compare_runs(runs[0], run)
    assert comparison.alone == {record["files"][0]["name"]: ("A", "its label map is not there")}
