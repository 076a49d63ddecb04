"""Detection by component against a search through all matchings."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from monai_vit3d.metrics.components import Detection, detect_components


def flood(mask):
    """Components connected by faces, edges or corners, as sets of places."""
    left, parts = set(map(tuple, np.argwhere(mask))), []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            place = edge.pop()
            part.add(place)
            for step in itertools.product((-1, 0, 1), repeat=3):
                near = tuple(i + j for i, j in zip(place, step))
                if near in left:
                    left.remove(near)
                    edge.append(near)
        parts.append(part)
    return parts


def most_pairs(predicted, referenced, min_iou):
    """The largest number of pairs, by trying all."""
    if not predicted:
        return 0
    first, *others = predicted
    best = most_pairs(others, referenced, min_iou)
    for i, part in enumerate(referenced):
        if len(first & part) > min_iou * len(first | part):
            best = max(best, 1 + most_pairs(others, referenced[:i] + referenced[i + 1 :], min_iou))
    return best


@given(seed=st.integers(0, 10**6), min_iou=st.sampled_from([0.0, 0.1, 0.5]))
def test_no_matching_has_more_pairs(seed, min_iou):
    rng = np.random.default_rng(seed)
    shape = (5, 5, 4)
    pred, ref = rng.random(shape) < 0.12, rng.random(shape) < 0.12
    both = rng.random(shape) < 0.08
    predicted, referenced = flood(pred | both), flood(ref | both)
    pairs = most_pairs(predicted, referenced, min_iou)
    found = detect_components(pred | both, ref | both, min_iou)
    assert found == (pairs, len(predicted) - pairs, len(referenced) - pairs)


def test_scores_are_those_of_scikit_learn():
    found = Detection(true_positives=3, false_positives=2, false_negatives=4)
    truth, answers = [1] * 3 + [0] * 2 + [1] * 4, [1] * 3 + [1] * 2 + [0] * 4
    assert found.precision == pytest.approx(precision_score(truth, answers))
    assert found.recall == pytest.approx(recall_score(truth, answers))
    assert found.f1 == pytest.approx(f1_score(truth, answers))


def test_one_blob_over_many_lesions_finds_one_at_most():
    ref = np.zeros((9, 9, 3), bool)
    ref[::2, ::2, 1] = True
    assert detect_components(np.ones_like(ref), ref, min_iou=0).true_positives == 1
    assert detect_components(np.ones_like(ref), ref) == (0, 1, 25)


def test_undefined_scores_are_nan():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    neither, missed, made_up = (detect_components(*pair) for pair in ((empty, empty), (empty, full), (full, empty)))
    assert all(math.isnan(score) for score in (neither.precision, neither.recall, neither.f1))
    assert math.isnan(missed.precision)
    assert (missed.recall, missed.f1) == (0, 0)
    assert math.isnan(made_up.recall)
    assert (made_up.precision, made_up.f1) == (0, 0)


def test_threshold_out_of_range():
    with pytest.raises(ValueError, match=r"min_iou=1; expected a number from 0 to below 1"):
        detect_components(np.ones((2, 2, 2)), np.ones((2, 2, 2)), 1)
