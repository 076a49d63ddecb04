"""Scores by class: scikit-learn's on the same cases, MedMNIST's over all classes, intervals over subjects."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, mean_absolute_error, r2_score
from sklearn.metrics import roc_auc_score as area

from monai_vit3d.metrics import classification
from monai_vit3d.metrics.bootstrap import bootstrap_statistic
from monai_vit3d.metrics.one_vs_rest import ALL_CLASSES, score_classes, score_values


def answers(classes, cases=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, cases)
    scores = rng.random((cases, classes)).round(2) + 0.05 + 0.4 * (labels[:, None] == np.arange(classes))
    return scores / scores.sum(1, keepdims=True), labels


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 4])
def test_the_scores_are_scikit_learns_and_medmnists(classes):
    probabilities, labels = answers(classes)
    names = [f"class {k}" for k in range(classes)]
    rows = score_classes(probabilities, labels, names)
    predictions = probabilities.argmax(1)
    overall = {
        "auc": classification.auc(probabilities, labels, "multi-class"),
        "accuracy": classification.accuracy(probabilities, labels, "multi-class"),
        "balanced_accuracy": balanced_accuracy_score(labels, predictions),
        "f1": f1_score(labels, predictions, average="macro"),
    }
    assert {key: value.mean for key, value in rows[ALL_CLASSES].items()} == pytest.approx(overall, abs=1e-12)
    for k, name in enumerate(names):
        truth, answer = labels == k, predictions == k
        expected = {"auc": area(truth, probabilities[:, k]), "accuracy": accuracy_score(truth, answer)}
        expected |= {"balanced_accuracy": balanced_accuracy_score(truth, answer), "f1": f1_score(truth, answer)}
        assert {key: value.mean for key, value in rows[name].items()} == pytest.approx(expected, abs=1e-12)
        assert all(value.low <= value.mean <= value.high for value in rows[name].values())


@pytest.mark.slow
def test_a_class_that_no_case_has_leaves_its_area_undefined():
    probabilities, labels = answers(3)
    rows = score_classes(probabilities[labels < 2], labels[labels < 2], ["a", "b", "c"])
    assert np.isnan(rows["c"]["auc"].mean)
    assert np.isnan(rows[ALL_CLASSES]["auc"].mean)
    assert not np.isnan(rows["a"]["auc"].mean)


def test_values_have_scikit_learns_scores():
    rng = np.random.default_rng(0)
    labels = rng.normal(50, 10, 40)
    predictions = labels + rng.normal(0, 4, 40)
    scores = score_values(predictions, labels)
    assert scores["mae"].mean == pytest.approx(mean_absolute_error(labels, predictions))
    assert scores["r2"].mean == pytest.approx(r2_score(labels, predictions))
    assert np.isnan(score_values([1.0, 2.0], [3.0, 3.0])["r2"].mean)


def test_intervals_draw_whole_subjects_and_are_those_of_a_mean():
    """Of a mean, about scipy's percentile interval; with every case twice and one subject for both, the same."""
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).normal(0, 1, 50)
    (interval,) = bootstrap_statistic(lambda cases: values[cases].mean(keepdims=True), 50)
    theirs = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert (interval.low, interval.high) == pytest.approx(theirs, abs=0.03)
    twice = np.repeat(values, 2)
    (same,) = bootstrap_statistic(lambda cases: twice[cases].mean(keepdims=True), 100, np.repeat(np.arange(50), 2))
    assert same == pytest.approx(interval, abs=1e-12)
