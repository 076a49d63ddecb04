"""Probing tables of features: cross-validation by subject against scikit-learn's own, and no leakage."""

import csv
import json
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_vit3d.cli import main
from monai_vit3d.data import DatasetError, UsageError
from monai_vit3d.evaluation import probe_features as module

probe_features = partial(module.probe_features, resamples=20)


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def tables(tmp_path):
    """40 scans of 20 subjects whose first two features tell age and diagnosis, with noise."""
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 80, 20)
    rows, labels = [], []
    for i, age in enumerate(ages):
        subject = f"sub-{i:02d}"
        for session in (1, 2):
            vector = rng.normal(size=5)
            vector[0] = (age - 50) / 15 + 0.1 * vector[0]
            vector[1] = 2.0 * (i % 2) + 0.5 * vector[1]
            rows.append([f"{subject}/ses-{session}", subject, 1, *vector])
        labels.append([subject, f"{age:.1f}", ("control", "patient")[i % 2], i % 4])
    features = write(tmp_path / "features.csv", ["name", "subject", "windows", *(f"f{i}" for i in range(5))], rows)
    return features, write(tmp_path / "labels.csv", ["subject", "age", "diagnosis", "site"], labels)


def test_values_are_read_by_ridge_regression_over_folds_of_subjects(tables, tmp_path):
    report = probe_features(*tables, "age", tmp_path / "out", folds=4)
    assert (report["kind"], report["scans"], report["subjects"], report["folds"]) == ("value", 40, 20, 4)
    score, low, high = report["probes"]["ridge"]["r2"]
    assert 0.8 < low <= score <= high <= 1
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    folds = {}
    for row in rows:
        folds.setdefault(row["subject"], set()).add(row["fold"])
    assert all(len(places) == 1 for places in folds.values())
    # the test fold by scikit-learn itself, with the alpha that its validation fold is best with
    with tables[0].open() as file:
        values = np.array([[float(cell) for cell in row[3:]] for row in list(csv.reader(file))[1:]])
    place, label = (np.array([float(row[key]) for row in rows]) for key in ("fold", "label"))
    train, chosen, test = np.isin(place, (2, 3)), place == 1, place == 0
    models = [
        make_pipeline(StandardScaler(), Ridge(alpha=10.0**k)).fit(values[train], label[train]) for k in range(-1, 7)
    ]
    best = max(models, key=lambda model: model.score(values[chosen], label[chosen]))
    expected = best.predict(values[test])
    came = [float(row["ridge_prediction"]) for row in rows if row["fold"] == "0"]
    np.testing.assert_allclose(came, expected, rtol=1e-4)
    # the neighbours by numpy: of some k, votes of exp(cosine / 0.07) around the mean of the training part
    centred = values - values[train].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = unit[test] @ unit[train].T
    came = [float(row["knn_prediction"]) for row in rows if row["fold"] == "0"]
    errors = []
    for k in range(1, int(train.sum()) + 1):
        near = np.argsort(-cosines, axis=1)[:, :k]
        votes = np.exp(np.take_along_axis(cosines, near, 1) / 0.07)
        errors.append(np.abs((votes * label[train][near]).sum(1) / votes.sum(1) - came).max())
    assert min(errors) < 1e-3
    assert (tmp_path / "out" / "probe.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == report


@pytest.mark.slow
def test_classes_are_read_by_two_probes(tables, tmp_path):
    report = probe_features(*tables, "diagnosis", tmp_path / "out", folds=4)
    assert report["classes"] == ["control", "patient"]
    assert report["probes"].keys() == {"logistic", "knn"}
    for scores in report["probes"].values():
        score, low, high = scores["auc"]
        assert 0.8 < score <= 1
        assert low <= score <= high
    assert probe_features(*tables, "diagnosis", folds=4) == report
    assert probe_features(*tables, "site", folds=4)["kind"] == "class"


@pytest.mark.slow
def test_what_tells_nothing_scores_like_chance(tables):
    features, labels = tables
    with labels.open() as file:
        rows = list(csv.reader(file))
    rng = np.random.default_rng(1)
    write(labels, ["subject", "coin"], [[row[0], rng.integers(2)] for row in rows[1:]])
    score, low, high = probe_features(features, labels, "coin", folds=3)["probes"]["logistic"]["auc"]
    assert low < 0.5 < high
    assert low <= score <= high


def test_the_same_bytes_under_two_subjects_stay_together(tables):
    features, labels = tables
    with features.open() as file:
        rows = list(csv.reader(file))
    rows[40][3:] = rows[1][3:]  # the last subject's second scan is the first subject's first one
    write(features, rows[0], rows[1:])
    report = probe_features(features, labels, "age", folds=4)
    assert report["duplicates"] == [["sub-00/ses-1", "sub-19/ses-2"]]
    with labels.open() as file:
        given = list(csv.reader(file))
    write(labels, ["subject", "age", "fold"], [[row[0], row[1], i % 4] for i, row in enumerate(given[1:])])
    with pytest.raises(UsageError, match="sub-00/ses-1 and sub-19/ses-1 have the same bytes, but are in two folds"):
        probe_features(features, labels, "age")


def test_given_folds_that_share_a_subject_are_refused(tables, tmp_path):
    features, _ = tables
    with features.open() as file:
        names = [row[0] for row in list(csv.reader(file))[1:]]
    rows = [[name, i, i % 3] for i, name in enumerate(names)]
    labels = write(tmp_path / "by_name.csv", ["name", "age", "fold"], rows)
    with pytest.raises(UsageError, match="sub-00/ses-1 and sub-00/ses-2 have the same subject, but are in two folds"):
        probe_features(features, labels, "age")


def test_tables_that_do_not_fit_say_so(tables, tmp_path):
    features, labels = tables
    with pytest.raises(UsageError, match="expected name or subject, and target=weight"):
        probe_features(features, labels, "weight")
    with pytest.raises(UsageError, match="kind=value, but diagnosis has texts"):
        probe_features(features, labels, "diagnosis", kind="value")
    with pytest.raises(UsageError, match="folds=2; expected 3 or more"):
        probe_features(features, labels, "age", folds=2)
    with pytest.raises(DatasetError, match="columns name, subject, f0"):
        probe_features(labels, labels, "age")
    other = write(tmp_path / "other.csv", ["subject", "age"], [["x", 3]])
    with pytest.raises(DatasetError, match=r"no subject of .* has a age"):
        probe_features(features, other, "age")


@pytest.mark.slow
def test_the_command_prints_scores(tables, capsys, monkeypatch):
    assert main(["probe", *map(str, tables), "--target", "age", "--folds", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "age: values, 40 scans of 20 subjects, 4 folds, 0 scans without a label"
    assert lines[1].split()[:2] == ["ridge", "r2"]
