"""Classifiers and regressors of vit3d init: trained, predicted by the fold that has not seen a case, scored."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score

from monai_vit3d.cli.command import main
from monai_vit3d.data import UsageError
from monai_vit3d.evaluation.volumes import evaluate_volumes
from monai_vit3d.metrics import classification
from monai_vit3d.planning.init import plan_bundle
from monai_vit3d.training import train_bundle


def write_run(folder, answers):
    """The part of a run's record that says what was predicted; None for a case that failed."""
    folder.mkdir()
    files = [
        {"name": name, "prediction": answer} if answer else {"name": name, "error": "cut off"}
        for name, answer in answers.items()
    ]
    (folder / "run.json").write_text(json.dumps({"files": files}))
    return folder


def test_scores_tables_and_page_of_a_classifier(tmp_path):
    names = ["large <b>", "small"]
    probabilities = {"a": 0.9, "b": 0.2, "c": 0.4, "d": 0.1, "e": None}
    answers = {name: p and dict(zip(names, (p, 1 - p))) for name, p in probabilities.items()}
    folder = write_run(tmp_path / "fold_0", answers)
    items = [({"name": name, "subject": name, "label": i % 2}, folder) for i, name in enumerate(answers)]
    evaluation = evaluate_volumes(items, names, "balls", tmp_path / "out")
    assert [case.name for case in evaluation.failed] == ["e"]
    pairs = np.array([[p, 1 - p] for p in probabilities.values() if p])
    assert evaluation.rows["all classes"]["auc"].mean == classification.auc(pairs, [0, 1, 0, 1], "multi-class")
    with open(tmp_path / "out" / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["prediction"]) for row in rows[:3]] == [
        ("large <b>", "large <b>"), ("small", "small"), ("large <b>", "small"),
    ]  # fmt: skip
    assert rows[4]["error"] == "cut off"
    with open(tmp_path / "out" / "classes.csv", newline="") as file:
        assert [(row["class"], row["cases"]) for row in csv.DictReader(file)] == [
            ("all classes", "4"), ("large <b>", "2"), ("small", "2"),
        ]  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "large <b>" not in page
    worst = page[page.index("Cases, worst first") :]
    assert worst.index("<bdi>c</bdi>") < worst.index("<bdi>b</bdi>") < worst.index("<bdi>a</bdi>")


def evaluate_answers(root, answers, labels, names, **options):
    """Evaluate answers by case, written as a run's record."""
    root.mkdir()
    folder = write_run(root / "run", answers)
    items = [({"name": name, "subject": name, "label": labels[name]}, folder) for name in answers]
    return evaluate_volumes(items, names, root.name, root / "evaluation", **options)


def paired_interval(first, second, statistic):
    """The difference of a statistic, and its percentile interval over draws of the cases."""
    rng, cases = np.random.default_rng(0), len(first)
    draws = [rng.integers(0, cases, cases) for _ in range(1000)]
    low, high = np.percentile([statistic(first, d) - statistic(second, d) for d in draws], (2.5, 97.5))
    return statistic(first, np.arange(cases)) - statistic(second, np.arange(cases)), low, high


@pytest.mark.slow
def test_two_classifiers_are_compared_case_by_case(tmp_path):
    rng, names = np.random.default_rng(1), ["ill", "well"]
    labels = {f"c{i:02d}": i % 2 for i in range(24)}
    truth = np.array([*labels.values()])
    chances = [np.clip(0.5 + spread * (truth - 0.5) + rng.normal(0, 0.3, 24), 0.01, 0.99) for spread in (0.3, 0.7)]
    weak, strong = ({n: {"ill": 1 - p, "well": p} for n, p in zip(labels, chance)} for chance in chances)
    evaluate_answers(tmp_path / "weak", {**weak, "c24": None}, {**labels, "c24": 0}, names)
    evaluation = evaluate_answers(tmp_path / "strong", strong, labels, names, against=tmp_path / "weak")
    assert evaluation.shared == 24
    overall = evaluation.differences["all classes"]
    area = roc_auc_score(truth, chances[1]) - roc_auc_score(truth, chances[0])
    assert overall["auc"].mean == pytest.approx(area)
    assert overall["auc"].low < area < overall["auc"].high

    def accuracy(chance, cases):
        return ((chance[cases] > 0.5) == truth[cases]).mean()

    assert overall["accuracy"] == pytest.approx(paired_interval(chances[1], chances[0], accuracy))
    page = (tmp_path / "strong" / "evaluation" / "report.html").read_text()
    assert f"Minus <bdi>{tmp_path / 'weak'}</bdi>" in page
    itself = evaluate_answers(tmp_path / "again", strong, labels, names, against=tmp_path / "strong" / "evaluation")
    assert all(value == 0 for row in itself.differences.values() for one in row.values() for value in one)


@pytest.mark.slow
def test_two_regressors_are_compared_case_by_case(tmp_path):
    rng = np.random.default_rng(2)
    labels = {f"c{i:02d}": float(i) for i in range(20)}
    truth = np.array([*labels.values()])
    values = [truth + rng.normal(0, std, 20) for std in (8, 1)]
    rough, fine = ({n: {"value": v} for n, v in zip(labels, value)} for value in values)
    evaluate_answers(tmp_path / "rough", rough, labels, [])
    del fine["c03"], labels["c03"]
    kept = np.arange(20) != 3
    evaluation = evaluate_answers(tmp_path / "fine", fine, labels, [], against=tmp_path / "rough")

    def error(value, cases):
        return np.abs(value[cases] - truth[kept][cases]).mean()

    assert evaluation.shared == 19
    assert evaluation.differences["value"]["mae"] == pytest.approx(
        paired_interval(values[1][kept], values[0][kept], error)
    )
    assert evaluation.differences["value"]["mae"].high < 0


OTHERS = {
    "no evaluation": (lambda root: root / "none", "no summary.json there"),
    "a damaged one": (
        lambda root: (root / "summary.json").write_text('{"scores": {}, "cases": [{"name": "a"}]}') and root,
        r"summary\.json: not the summary of an evaluation \('subject'\)",
    ),
    "other classes": (
        lambda root: evaluate_answers(root / "o", {"a": {"x": 0.2, "y": 0.8}}, {"a": 1}, ["x", "y"]) and root / "o",
        "scores other classes than all classes, ill, well",
    ),
    "other cases": (
        lambda root: (
            evaluate_answers(root / "o", {"z": {"ill": 0.2, "well": 0.8}}, {"z": 1}, ["ill", "well"]) and root / "o"
        ),
        "none of the 1 cases, such as a, has an answer",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_cannot_be_compared(tmp_path, other):
    make, message = OTHERS[other]
    folder = make(tmp_path)
    with pytest.raises(UsageError, match=message):
        evaluate_answers(tmp_path / "mine", {"a": {"ill": 0.5, "well": 0.5}}, {"a": 0}, ["ill", "well"], against=folder)


def test_values_and_a_run_without_an_answer(tmp_path):
    values = {"a": 11.0, "b": 19.0, "c": 33.0}
    folder = write_run(tmp_path / "fold_0", {name: {"value": value} for name, value in values.items()})
    items = [({"name": name, "subject": name, "label": 10.0 * (i + 1)}, folder) for i, name in enumerate(values)]
    scores = evaluate_volumes(items, [], "ages", tmp_path / "out").rows["value"]
    assert scores["mae"].mean == mean_absolute_error([10, 20, 30], [11, 19, 33])
    assert scores["r2"].mean == r2_score([10, 20, 30], [11, 19, 33])
    empty = write_run(tmp_path / "fold_1", {"a": None})
    with pytest.raises(UsageError, match="no case was answered, the first because: cut off"):
        evaluate_volumes([(items[0][0], empty)], [], "ages", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("column", ["label", "target"])
def test_the_command_scores_what_the_folds_have_not_seen(column, tmp_path, capsys):
    rows = []
    for i in range(8):
        radius, rng = 3 + 3 * (i % 2), np.random.default_rng(i)
        grid = np.indices((16, 16, 16)) - 7.5
        image = rng.normal(0, 0.3, (16, 16, 16)) + 3 * ((grid**2).sum(0) < radius**2)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), tmp_path / f"ball_{i}.nii.gz")
        rows.append([f"ball_{i}.nii.gz", ("small", "large")[i % 2] if column == "label" else 2.0 * radius])
    with open(tmp_path / "cases.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", column], *rows])
    small = {"folds": 2, "repeats": 1, "epochs": 1, "embed_dim": 24, "num_heads": 2, "depth": 2}
    bundle = plan_bundle(tmp_path / "cases.csv", tmp_path / "bundle", overrides=small).bundle
    train_bundle(bundle, "all")
    capsys.readouterr()
    assert main(["evaluate", str(bundle)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == (["class", "cases"] if column == "label" else ["cases", "Mean"])
    assert printed[-1] == f"8 scored, 0 failed: {bundle / 'evaluation' / 'report.html'}"
    cases = json.loads((bundle / "evaluation" / "summary.json").read_text())["cases"]
    for fold in (0, 1):
        with open(bundle / "predictions" / f"fold_{fold}" / "predictions.csv", newline="") as file:
            assert {row["filename"] for row in csv.DictReader(file)} <= {case["name"] for case in cases}
