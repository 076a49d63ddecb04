"""Scores equal MedMNIST's, scikit-learn's and loops written from the papers; what has no score says why."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from sklearn.metrics import log_loss

from monai_vit3d.data import ScoreError
from monai_vit3d.metrics import (
    SCORES,
    ClassificationScore,
    accuracy,
    auc,
    decode,
    expected_calibration_error,
    mean_absolute_error,
    negative_log_likelihood,
    r2,
)

MEDMNIST = ["multi-class", "ordinal-regression", "binary-class", "multi-label, binary-class"]


def random_case(rng, task, cases, classes, steps):
    """Scores on a grid of ``steps`` values, so that many are equal, and labels with every class in them."""
    if task == "multi-label, binary-class":
        labels = rng.integers(0, 2, (cases, classes))
        labels[:2] = [[0], [1]]
        return rng.integers(0, steps + 1, (cases, classes)) / steps, labels
    classes = 2 if task == "binary-class" else classes
    counts = rng.integers(1, steps, (cases, classes)).astype(float)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, cases - classes)])
    return counts / counts.sum(1, keepdims=True), rng.permutation(labels)


def pairwise_auc(positive, score):
    """The share of (positive, negative) pairs in the right order, equal ones counting half (Mann-Whitney)."""
    difference = score[positive][:, None] - score[~positive][None]
    return np.mean((difference > 0) + 0.5 * (difference == 0))


def loop_ece(probabilities, labels, bins):
    """Guo et al. 2017, equations 2 and 3, as they are written."""
    total, n = 0.0, len(labels)
    edges = np.linspace(0, 1, bins + 1)
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(n) if low < max(probabilities[i]) <= high]
        if inside:
            right = sum(np.argmax(probabilities[i]) == labels[i] for i in inside) / len(inside)
            sure = sum(max(probabilities[i]) for i in inside) / len(inside)
            total += len(inside) / n * abs(right - sure)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("task", MEDMNIST)
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(8, 60), st.integers(3, 7), st.sampled_from([2, 4, 10, 1000]))
def test_auc_and_accuracy_are_medmnists(task, seed, cases, classes, steps):
    evaluator = pytest.importorskip("medmnist.evaluator")
    scores, labels = random_case(np.random.default_rng(seed), task, cases, classes, steps)
    column = labels if labels.ndim == 2 else labels[:, None]  # as MedMNIST stores them
    assert auc(scores, labels, task) == pytest.approx(evaluator.getAUC(column, scores, task), abs=1e-6)
    assert accuracy(scores, column, task) == pytest.approx(evaluator.getACC(column, scores, task), abs=1e-6)


@pytest.mark.parametrize("task", ["multi-class", "ordinal", "multi-label"])
def test_auc_is_the_share_of_ordered_pairs(task):
    name = "multi-label, binary-class" if task == "multi-label" else task
    scores, labels = random_case(np.random.default_rng(3), name, 40, 4, 5)
    truths = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(4)
    expected = np.mean([pairwise_auc(t, s) for t, s in zip(truths.T, scores.T)])
    assert auc(torch.tensor(scores), torch.tensor(labels), task) == pytest.approx(expected, abs=1e-12)
    assert auc(MetaTensor(scores), labels.tolist(), task) == pytest.approx(expected, abs=1e-12)


def test_two_classes_by_hand():
    probabilities = [[0.5, 0.5], [0.3, 0.7], [0.9, 0.1], [0.4, 0.6]]  # 0.5 is not above 0.5: class 0
    labels = [1, 1, 0, 0]
    assert accuracy(probabilities, labels, "multi-class") == 0.5
    assert auc(probabilities, labels, "multi-class") == 0.75


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("classes", [2, 5])
def test_calibration_error_is_the_papers(classes, bins):
    rng = np.random.default_rng(classes)
    probabilities = rng.dirichlet(np.ones(classes), 200)
    probabilities[:20] = np.eye(classes)[0]  # confidence 1, the end of the last bin
    probabilities[20:40] = [0.6, 0.4] + [0] * (classes - 2)  # on an edge of 10 and of 15 bins
    labels = rng.integers(0, classes, 200)
    found = expected_calibration_error(probabilities, labels, "multi-class", bins)
    assert found == pytest.approx(loop_ece(probabilities, labels, bins), abs=1e-12)


def test_calibration_error_by_hand():
    # bins of 0.2: two cases of confidence 0.7 and 0.8, one right; two of 0.9 and 1.0, both right
    probabilities = [[0.7, 0.3], [0.2, 0.8], [0.9, 0.1], [0.0, 1.0]]
    expected = 2 / 4 * abs(0.75 - 0.5) + 2 / 4 * abs(0.95 - 1)
    assert expected_calibration_error(probabilities, [0, 0, 0, 1], "multi-class", bins=5) == pytest.approx(expected)
    # multi-label: the last column above as one label, and one that is sure and always wrong
    labels, scores = [[0, 1], [0, 1], [0, 1], [1, 1]], [[0.3, 0], [0.8, 0], [0.1, 0], [1.0, 0]]
    found = expected_calibration_error(scores, labels, "multi-label", bins=5)
    assert found == pytest.approx((expected + 1) / 2)


def test_negative_log_likelihood_is_scikit_learns():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(4), 50), rng.integers(0, 4, 50)
    probabilities[0] = np.eye(4)[(labels[0] + 1) % 4]  # impossible, but true
    expected = log_loss(labels, probabilities, labels=range(4))
    assert negative_log_likelihood(probabilities, labels, "ordinal") == pytest.approx(expected, rel=1e-12)
    scores, hot = rng.random((50, 3)), rng.integers(0, 2, (50, 3))
    expected = np.mean([log_loss(h, s, labels=[0, 1]) for h, s in zip(hot.T, scores.T)])
    assert negative_log_likelihood(scores, hot, "multi-label") == pytest.approx(expected, rel=1e-12)


def test_regression_by_hand():
    predictions, labels = torch.tensor([[1.0], [2.0], [4.0]]), [1, 3, 2]
    assert mean_absolute_error(predictions, labels) == 1.0
    assert r2(predictions, labels) == pytest.approx(1 - 5 / 2)
    pairs, values = [[1, 10], [2, 20], [4, 30]], [[1, 10], [3, 20], [2, 30]]
    assert r2(pairs, values) == pytest.approx((-1.5 + 1) / 2)


GOOD = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]


@pytest.mark.parametrize("score", [auc, accuracy, expected_calibration_error, negative_log_likelihood])
@pytest.mark.parametrize(
    ("scores", "labels", "task", "match"),
    [
        ([], [], "multi-class", r"nothing to score in an array of shape \(0,\)"),
        ([*GOOD[:2], [float("nan"), 0, 1], [1, float("inf"), 0]], [0, 1, 2, 0], "multi-class", "2 of 12 .* case 2"),
        (GOOD, [0, 1, 2], "multi-class", r"labels of shape \(3,\) .*\(4, 3\); expected \(4,\)"),
        (GOOD, [0, 1, 2, 0], "multi-label", r"labels of shape \(4,\) .*; expected \(4, 3\)"),
        ([0.1, 0.9, 0.3], [0, 1, 1], "binary-class", r"scores of shape \(3,\).*2 or more classes"),
        (GOOD, [0, 3, 2, 0], "multi-class", "label 3 of case 1; expected a whole number from 0 to 2"),
        (GOOD, [0, 1, 2, 0.5], "ordinal", "label 0.5 of case 3"),
        (GOOD, [0, 1, 2, float("nan")], "multi-class", "label nan of case 3"),
        (GOOD, [[0, 1, 2]] * 4, "multi-label", "label 2 of case 0; expected a whole number from 0 to 1"),
    ],
)
def test_bad_input_is_named(score, scores, labels, task, match):
    with pytest.raises(ScoreError, match=match):
        score(scores, labels, task)


@pytest.mark.parametrize(
    ("scores", "labels", "task", "match"),
    [
        (GOOD, [0, 1, 0, 0], "multi-class", "none of 4 cases is of class 2: the AUC is undefined"),
        (GOOD, [0, 0, 0, 0], "ordinal", "none of 4 cases is of class 1, 2"),
        ([[0.5, 0.5]] * 2, [1, 1], "binary-class", "none of 2 cases is of class 0"),
        (GOOD, [[0, 1, 1], [1, 1, 0], [0, 1, 0], [0, 1, 0]], "multi-label", "label 1 is 1 in all 4 cases"),
    ],
)
def test_auc_without_a_class_is_undefined(scores, labels, task, match):
    with pytest.raises(ScoreError, match=match):
        auc(scores, labels, task)
    assert 0 <= accuracy(scores, labels, task) <= 1


def test_what_is_no_probability_is_refused():
    logits = np.array(GOOD) * 3 - 0.5
    labels = [0, 1, 2, 0]
    assert auc(logits, labels, "multi-class") == auc(GOOD, labels, "multi-class")  # any scores have an AUC
    with pytest.raises(ScoreError, match=r"scores from -0\.2 to 1\.9, .* case 0: expected probabilities"):
        accuracy(logits, labels, "multi-class")
    with pytest.raises(ScoreError, match=r"case 1 sum to 1\.4; expected 1"):
        negative_log_likelihood([[0.5, 0.5], [0.9, 0.5]], [0, 1], "multi-class")
    for score in (auc, accuracy, expected_calibration_error, negative_log_likelihood):
        with pytest.raises(ValueError, match="mean_absolute_error or r2"):
            score([1.0], [1.0], "regression")
    with pytest.raises(ValueError, match="bins=0"):
        expected_calibration_error(GOOD, labels, "multi-class", bins=0)


@pytest.mark.parametrize("score", [mean_absolute_error, r2])
def test_bad_values_are_named(score):
    with pytest.raises(ScoreError, match=r"predictions of shape \(2,\), labels of \(3,\)"):
        score([1, 2], [1, 2, 3])
    with pytest.raises(ScoreError, match="labels: 1 of 2 are NaN or infinite, the first in case 1"):
        score([1, 2], [1, float("nan")])
    with pytest.raises(ScoreError, match="R² is undefined" if score is r2 else "shape"):
        r2([1, 2], [3, 3]) if score is r2 else score([], [])


def encoded(labels, task, classes):
    """Target vectors as the losses read them, from numpy alone."""
    if task == "multi-class":
        return np.eye(classes)[labels]
    return (np.array(labels)[:, None] > np.arange(classes - 1)).astype(float) if task == "ordinal" else labels


@pytest.mark.parametrize("task", ["multi-class", "ordinal", "multi-label", "regression"])
def test_metric_sees_all_batches_at_once(task):
    rng = np.random.default_rng(5)
    name = "multi-label, binary-class" if task == "multi-label" else "multi-class"
    scores, labels = random_case(rng, name, 11, 3, 50)
    if task == "regression":
        labels = rng.random((11, 3))
    rows = torch.tensor(scores), torch.tensor(encoded(labels, task, 3))
    np.testing.assert_array_equal(decode(rows[1], task).numpy(), labels)
    for score in [name for name, row in SCORES.items() if task in row.tasks]:
        expected = SCORES[score].function(scores, labels, task)
        metric = ClassificationScore(score, task)
        for _ in range(2):  # a second time after reset
            metric(*(list(MetaTensor(x[:3])) for x in rows))  # a list of cases, as MONAI decollates them
            metric(*(x[3:] for x in rows))  # or a batch
            assert metric.aggregate().item() == pytest.approx(expected, abs=1e-6)
            assert metric.aggregate().shape == ()
            metric.reset()
        with pytest.raises(ScoreError, match="no cases"):
            metric.aggregate()


def test_metric_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="score='mae' for task='ordinal'; expected one of 'auc', 'accuracy'"):
        ClassificationScore("mae", "ordinal-regression")
    with pytest.raises(ValueError, match="score='auc' for task='regression'; expected one of 'mae', 'r2'"):
        ClassificationScore("auc", "regression")
    with pytest.raises(ScoreError, match=r"predictions \(2, 3\) with targets \(2, 3\); task 'ordinal' .*\(2, 2\)"):
        ClassificationScore("auc", "ordinal")(torch.ones(2, 3) / 3, torch.eye(3)[:2])
    with pytest.raises(ScoreError, match=r"with targets None"):
        ClassificationScore("auc")(torch.ones(2, 3) / 3)
