"""Bootstrap intervals and paired comparisons against scipy's, and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from monai_vit3d.metrics.bootstrap import bootstrap_mean, compare_pairs


def test_interval_is_scipys():
    values = np.random.default_rng(0).beta(8, 2, 40)
    own = bootstrap_mean(values)
    other = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert own.mean == pytest.approx(values.mean())
    assert (own.low, own.high) == pytest.approx((other.low, other.high), abs=0.002)


def test_whole_subjects_are_drawn():
    """Cases that repeat their subject's value say nothing new: the interval is that of the subjects."""
    values = np.random.default_rng(0).normal(size=12)
    subjects = np.repeat(np.arange(12), 5)
    repeated = bootstrap_mean(np.repeat(values, 5), subjects)
    assert repeated == pytest.approx(bootstrap_mean(values))
    taken_for_independent = bootstrap_mean(np.repeat(values, 5))
    assert repeated.high - repeated.low > 1.8 * (taken_for_independent.high - taken_for_independent.low)


def test_subjects_of_different_sizes_weigh_by_their_cases():
    """Two subjects: means of a resample are a's, b's or that of all cases."""
    interval = bootstrap_mean([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"])
    assert interval == (0.25, 0.0, 1.0)


def test_the_same_cases_give_the_same_interval_and_nan_are_left_out():
    values = np.random.default_rng(0).random(25).tolist()
    assert bootstrap_mean(values) == bootstrap_mean([*values, math.nan])
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)


def test_no_interval_of_one_subject_and_no_mean_of_none():
    assert bootstrap_mean([0.5])[0] == 0.5
    assert all(math.isnan(bound) for bound in bootstrap_mean([0.5, 0.7], ["a", "a"])[1:])
    assert all(math.isnan(number) for number in bootstrap_mean([math.nan]))


def test_comparison_is_wilcoxons():
    rng = np.random.default_rng(0)
    first, second = rng.random(30), rng.random(30)
    first[3], second[4], first[5] = math.nan, math.nan, second[5]
    pair = compare_pairs(first, second)
    kept = ~np.isnan(first - second)
    assert pair.cases == 28
    assert pair.p == pytest.approx(stats.wilcoxon(first[kept], second[kept]).pvalue)
    assert (pair.higher, pair.lower) == ((first > second).sum(), (first < second).sum())
    assert pair.higher + pair.lower == 27
    assert pair.difference.mean == pytest.approx(np.nanmean(first - second))


def test_comparison_over_subjects_takes_their_means():
    first, second = np.array([3.0, 1.0, 5.0, 2.0, 4.0, 6.0]), np.zeros(6)
    subjects = ["a", "a", "b", "c", "d", "e"]
    assert compare_pairs(first, second, subjects).p == stats.wilcoxon([2.0, 5.0, 2.0, 4.0, 6.0]).pvalue


def test_equal_methods_have_no_p():
    pair = compare_pairs([0.5, 0.6], [0.5, 0.6])
    assert math.isnan(pair.p)
    assert pair.difference == (0, 0, 0)
