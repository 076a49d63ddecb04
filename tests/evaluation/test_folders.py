"""Evaluation of folders: scores, files, the comparison of two, and what fails."""

import csv
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from monai_vit3d.data import UsageError
from monai_vit3d.evaluation import evaluate_folders
from monai_vit3d.evaluation.tables import read_scored
from tests.evaluation.folders import AFFINE, SHAPE, organ, write_folders, write_map

NAMES = {1: "liver", 2: "tumour"}


def dice(first, second, value):
    first, second = first == value, second == value
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def evaluated(folders):
    """An evaluation and its folder."""
    output = folders / "out"
    images = folders / "images"
    return evaluate_folders(folders / "pred", folders / "labels", output, class_names=NAMES, images=images), output


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_by_case_and_class(evaluated):
    evaluation, output = evaluated
    rows = rows_of(output / "cases.csv")
    assert [(row["case"], row["class"]) for row in rows] == [
        (f"case_{i}", name) for i in range(4) for name in NAMES.values()
    ]
    for row in rows:
        shift, value = int(row["case"][-1]), int(row["label"])
        assert float(row["dice"]) == pytest.approx(dice(organ(shift), organ(), value), abs=1e-5)
        assert float(row["volume_ml"]) == pytest.approx((organ() == value).sum() * 2.5 / 1000)
        assert float(row["hd95_mm"]) == shift
    assert evaluation.failed == []


def test_summary_by_class(evaluated):
    evaluation, output = evaluated
    rows = {row["class"]: row for row in rows_of(output / "classes.csv")}
    assert list(rows) == ["all classes", "liver", "tumour"]
    by_class = {value: [dice(organ(shift), organ(), value) for shift in range(4)] for value in NAMES}
    assert float(rows["liver"]["dice_mean"]) == pytest.approx(np.mean(by_class[1]), abs=1e-5)
    assert float(rows["tumour"]["dice_median"]) == pytest.approx(np.median(by_class[2]), abs=1e-5)
    assert float(rows["all classes"]["dice_mean"]) == pytest.approx(np.mean([*by_class.values()]), abs=1e-5)
    assert float(rows["liver"]["dice_low"]) < float(rows["liver"]["dice_mean"]) < float(rows["liver"]["dice_high"])
    # moved by its own width, the tumour of case 3 is not found
    assert rows["tumour"]["true_positives"] == "3"
    assert rows["tumour"]["false_negatives"] == "1"
    assert float(rows["tumour"]["f1"]) == pytest.approx(0.75)
    assert evaluation.classes[1].means["dice"].mean == pytest.approx(np.mean(by_class[1]))


def test_summary_is_read_back(evaluated):
    evaluation, output = evaluated
    again = read_scored(output / "summary.json", evaluation.nsd_mm)
    for one in evaluation.scored:
        assert again[one.case.name] == replace(one, case=replace(one.case, image=None))
    content = json.loads((output / "summary.json").read_text())
    assert [row["name"] for row in content["classes"]] == ["all classes", "liver", "tumour"]


def test_nothing_is_written_without_an_output(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = evaluate_folders(folders / "pred", folders / "labels")
    assert evaluation.page is None
    assert list(tmp_path.iterdir()) == []
    assert [one.name for one in evaluation.classes] == ["all classes", "label 1", "label 2"]


class Page(HTMLParser):
    """Tags, attributes and headings of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.sources, self._in = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in = tag if tag == "h3" else self._in
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        self._in = None if tag == self._in else self._in

    def handle_data(self, data):
        if self._in:
            self.headings.append(data)


def test_page_has_the_worst_case_first_and_needs_nothing_else(evaluated):
    page = Page((evaluated[1] / "report.html").read_text())
    assert page.headings == ["case_3", "case_2", "case_1", "case_0"]
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags
    assert page.tags.count("circle") == 8


def test_names_are_shown_as_text(tmp_path):
    root = write_folders(tmp_path, shifts=())
    write_map(organ(), root / "labels" / "=1+<b>x.nii.gz")
    write_map(organ(1), root / "pred" / "=1+<b>x_seg.nii.gz")
    evaluate_folders(root / "pred", root / "labels", root / "out", class_names={1: "<script>a", 2: "=cmd()"})
    page = (root / "out" / "report.html").read_text()
    assert "script" not in Page(page).tags
    assert "&lt;script&gt;a" in page
    assert {row["case"] for row in rows_of(root / "out" / "cases.csv")} == {"'=1+<b>x"}
    assert {row["class"] for row in rows_of(root / "out" / "cases.csv")} == {"<script>a", "'=cmd()"}


@pytest.mark.slow
def test_storage_order_of_a_prediction_does_not_matter_but_its_grid_does(folders, tmp_path):
    """A label map is compared voxel by voxel: one stored in another order is another grid, and refused by name."""
    turned = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for i in range(2):
        write_map(organ(i)[::-1], tmp_path / "pred" / f"case_{i}_seg.nii.gz", turned)
        write_map(organ()[::-1], tmp_path / "labels" / f"case_{i}.nii.gz", turned)
    both = evaluate_folders(tmp_path / "pred", tmp_path / "labels")
    plain = evaluate_folders(folders / "pred", folders / "labels")
    for one, other in zip(both.scored, plain.scored):
        for row, expected in zip(one.scores, other.scores):
            assert row.dice == pytest.approx(expected.dice)
            assert row.hd95_mm == pytest.approx(expected.hd95_mm)
    mixed = evaluate_folders(tmp_path / "pred", folders / "labels")
    assert all("voxels away from" in one.error for one in mixed.failed)
    assert len(mixed.failed) == 2


@pytest.mark.parametrize(
    ("labels", "affine", "message"),
    [
        (organ()[:-1], AFFINE, "expected one grid. Predict on the grid of the labels"),
        (organ(), AFFINE @ np.diag([1, 1, 1.2, 1]), "voxels away from"),
        (organ() * np.float32(0.5), AFFINE, "voxels such as 0.5; a label map holds whole numbers"),
        (-organ().astype(np.int16), AFFINE, "voxels such as -1; a label map holds whole numbers"),
        (np.stack([organ(), organ()], 3), AFFINE, "2 volumes; a label map is one 3D volume"),
        (np.where(organ() == 1, np.float32("nan"), 0).astype(np.float32), AFFINE, "not finite|NaN"),
    ],
)
def test_a_case_that_cannot_be_scored_leaves_the_others_alone(tmp_path, labels, affine, message):
    root = write_folders(tmp_path, shifts=(1, 2))
    write_map(labels, root / "labels" / "bad.nii.gz", affine)
    write_map(organ(), root / "pred" / "bad_seg.nii.gz")
    evaluation = evaluate_folders(root / "pred", root / "labels", root / "out", class_names=NAMES)
    (failed,) = evaluation.failed
    assert message in failed.error or any(part in failed.error for part in message.split("|"))
    assert "bad.nii.gz" in failed.error
    assert "\n" not in failed.error
    assert evaluation.classes[1].cases == 2
    assert rows_of(root / "out" / "cases.csv")[0]["error"] == failed.error
    assert "1 failed" in (root / "out" / "report.html").read_text()


def test_all_cases_fail(tmp_path):
    write_map(organ()[:-1], tmp_path / "labels" / "a.nii.gz")
    write_map(organ(), tmp_path / "pred" / "a_seg.nii.gz")
    evaluation = evaluate_folders(tmp_path / "pred", tmp_path / "labels", tmp_path / "out")
    assert len(evaluation.failed) == 1
    assert list(evaluation.classes) == []
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_class_of_one_case_alone_is_absent_in_the_others(tmp_path):
    root = write_folders(tmp_path, shifts=(0, 0))
    extra = organ()
    extra[0, 0, 0] = 7
    write_map(extra, root / "pred" / "case_1_seg.nii.gz")
    evaluation = evaluate_folders(root / "pred", root / "labels", class_names=NAMES)
    rows = {one.name: one for one in evaluation.classes}
    assert (rows["label 7"].cases, rows["label 7"].absent, rows["label 7"].made_up) == (1, 1, 1)
    assert rows["label 7"].means["dice"].mean == 0
    assert math.isnan(evaluation.scored[0].scores[2].dice)


@pytest.mark.slow
def test_two_runs_are_compared_by_case(folders, evaluated, tmp_path):
    for i, shift in enumerate((1, 1, 1)):
        write_map(organ(shift), tmp_path / "other" / f"case_{i}_seg.nii.gz")
    result = evaluate_folders(
        folders / "pred", folders / "labels", tmp_path / "out", class_names=NAMES, against=tmp_path / "other"
    )
    pair = result.comparison["liver"]["dice"]
    expected = [dice(organ(i), organ(), 1) - dice(organ(1), organ(), 1) for i in range(3)]
    assert pair.cases == 3
    assert pair.difference.mean == pytest.approx(np.mean(expected), abs=1e-6)
    assert (pair.higher, pair.lower) == (1, 1)
    assert "Against" in (tmp_path / "out" / "report.html").read_text()
    # its evaluation, in place of its predictions, gives the same
    evaluate_folders(tmp_path / "other", folders / "labels", tmp_path / "evaluated", class_names=NAMES)
    again = evaluate_folders(folders / "pred", folders / "labels", class_names=NAMES, against=tmp_path / "evaluated")
    assert again.comparison == result.comparison


def test_a_run_against_itself_differs_in_nothing(folders, evaluated):
    result = evaluate_folders(folders / "pred", folders / "labels", class_names=NAMES, against=evaluated[1])
    for group in result.comparison.values():
        for pair in group.values():
            assert (pair.difference, pair.higher, pair.lower) == ((0, 0, 0), 0, 0)
            assert math.isnan(pair.p)


@pytest.mark.parametrize("nsd_mm", [0, -1, math.nan])
def test_tolerance_out_of_range(folders, nsd_mm):
    with pytest.raises(UsageError, match=r"nsd_mm=.*; expected a length in mm above 0"):
        evaluate_folders(folders / "pred", folders / "labels", nsd_mm=nsd_mm)


def test_evaluations_that_cannot_be_compared(folders, evaluated, tmp_path):
    of = folders / "pred", folders / "labels"
    with pytest.raises(UsageError, match=r"its surface Dice is at 2 mm, nsd_mm=1 here"):
        evaluate_folders(*of, nsd_mm=1, against=evaluated[1])
    write_map(organ(), tmp_path / "others" / "stranger_seg.nii.gz")
    with pytest.raises(UsageError, match=r"against=.*others: none of the 4 cases, such as case_0, is there"):
        evaluate_folders(*of, against=tmp_path / "others")
    (tmp_path / "summary.json").write_text('{"cases": [{"name": 3}], "nsd_mm": 2.0}')
    with pytest.raises(UsageError, match=r"not the summary of an evaluation \(it.cases\[0\].name is 3; text"):
        evaluate_folders(*of, against=tmp_path)
