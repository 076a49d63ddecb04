"""Figures of collapse against numpy and known spectra; the alarm: when it rings, resumed, silent on healthy ones."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.errors import ScoreError, TrainingCollapsed, UsageError, Vit3dError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.pretraining import CollapseAlarm, collapse_report, cosine_to_mean, feature_std, rankme, target_variance

seeds, sizes = st.integers(0, 2**31), st.integers(1, 40)
FUNCTIONS = [rankme, feature_std, cosine_to_mean, target_variance]
HEALTHY = collapse_report(torch.randn(100, 16, generator=torch.Generator().manual_seed(0)))


def gaussian(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(seed, size):
    return torch.linalg.qr(gaussian(seed, size, size))[0]


def clusters(seed, count, samples=120, dimensions=32, spread=0.1):
    """Features about ``count`` random centres."""
    centres = gaussian(seed, count, dimensions)
    return centres[torch.arange(samples) % count] + spread * gaussian(seed + 1, samples, dimensions)


def volumes(samples=48):
    """Noisy ellipsoids of several sizes, ``(N, 1, 16, 16, 16)``."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij"))
    rng = np.random.default_rng(0)
    inside = [((grid / rng.uniform(0.4, 0.9, (3, 1, 1, 1))) ** 2).sum(0) < 1 for _ in range(samples)]
    return torch.tensor(np.stack(inside)[:, None] * 3.0 + 0.2 * rng.standard_normal((samples, 1, 16, 16, 16))).float()


# figures


@given(seeds, sizes, sizes)
def test_figures_are_numpys(seed, samples, dimensions):
    features = 3 * gaussian(seed, samples, dimensions) + gaussian(seed + 1, dimensions)
    array = features.numpy()
    # singular values from the eigenvalues of the smaller Gram matrix
    gram = array.T @ array if dimensions < samples else array @ array.T
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    shares = values / values.sum() + 1e-7
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert rankme(features) == pytest.approx(np.clip(expected, 1, min(array.shape)), rel=1e-6)
    unit = array / np.sqrt((array**2).sum(1, keepdims=True))
    assert feature_std(features) == pytest.approx(unit.std(0).mean(), abs=1e-12)
    mean = array.mean(0)
    cosines = array @ mean / (np.sqrt((array**2).sum(1)) * np.sqrt((mean**2).sum()))
    assert cosine_to_mean(features) == pytest.approx(cosines.mean(), abs=1e-12)
    assert target_variance(features) == pytest.approx(array.var(0).mean(), rel=1e-12)


@given(seeds, sizes, sizes, st.integers(0, 40), st.floats(1e-6, 1e6))
def test_rankme_is_bounded_and_ignores_scale_and_rotation(seed, samples, dimensions, rank, scale):
    features = gaussian(seed, samples, rank) @ gaussian(seed + 1, rank, dimensions)
    value = rankme(features)
    assert 1 <= value <= min(samples, dimensions)
    assert value <= max(1, rank) + 0.01
    turned = rotation(seed, samples) @ features @ rotation(seed + 1, dimensions)
    assert rankme(scale * turned) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_rankme_counts_equal_directions(k, dtype):
    basis = torch.zeros(30, 16, dtype=torch.float64)
    basis[:k, :k] = torch.eye(k)
    features = rotation(3, 30) @ basis @ rotation(4, 16)
    assert rankme(features.to(dtype)) == pytest.approx(k, rel=1e-4)


def test_rankme_of_the_paper_s_equation():
    # singular values 3 and 1, by hand: shares 3/4 and 1/4
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert rankme(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(expected, rel=1e-6)


def test_collapsed_features_have_the_least_of_all_figures():
    one = gaussian(0, 1, 24).expand(50, 24)
    for features in (one, one * torch.linspace(0.5, 2, 50, dtype=torch.float64)[:, None]):
        report = collapse_report(features)
        assert report.rankme == pytest.approx(1, abs=1e-3)
        assert report.feature_std == pytest.approx(0, abs=1e-12)
        assert report.cosine_to_mean == pytest.approx(1)
    nothing = collapse_report(torch.zeros(5, 3), torch.zeros(5, 3))
    assert (nothing.rankme, nothing.feature_std, nothing.target_variance) == (1, 0, 0)


@given(seeds, st.integers(2, 40), sizes, st.floats(0, 10), st.floats(1e-9, 1e9))
def test_bounds_of_std_and_cosine(seed, samples, dimensions, offset, scale):
    features = gaussian(seed, samples, dimensions) + offset
    report, scaled = collapse_report(features), collapse_report(scale * features)
    assert 0 <= report.relative_std <= 1 + 1e-9
    assert -1 - 1e-9 <= report.cosine_to_mean <= 1 + 1e-9
    assert scaled.feature_std == pytest.approx(report.feature_std, abs=1e-9)
    assert scaled.cosine_to_mean == pytest.approx(report.cosine_to_mean, abs=1e-9)


def test_isotropic_features_have_the_std_of_simsiam():
    assert collapse_report(gaussian(0, 4000, 64)).relative_std == pytest.approx(1, abs=0.01)


def test_targets_that_tell_only_the_place_have_no_variance():
    place = gaussian(0, 1, 27, 8).expand(10, 27, 8)
    assert target_variance(place) == pytest.approx(0, abs=1e-12)
    assert target_variance(place.reshape(-1, 8)) > 0.5
    assert target_variance(place + gaussian(1, 10, 27, 8)) == pytest.approx(0.9, abs=0.1)


def test_report_as_dict_is_plain_numbers():
    features = gaussian(0, 20, 8)
    plain, full = (
        collapse_report(features).as_dict(),
        collapse_report(features.requires_grad_(), features[:, :4]).as_dict(),
    )
    assert full["rankme"] == rankme(features)
    assert full["relative_std"] == pytest.approx(full["feature_std"] * math.sqrt(8))
    assert (full["samples"], full["dimensions"]) == (20, 8)
    assert set(full) - set(plain) == {"target_variance"}
    assert json.loads(json.dumps(full)) == full


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_table_of_features(function):
    with pytest.raises(UsageError, match=r"of shape \(2, 3, 4, 5\); expected \(samples, dimensions\)"):
        function(torch.zeros(2, 3, 4, 5))
    with pytest.raises(UsageError, match=r"of shape \(0, 4\)"):
        function(torch.zeros(0, 4))
    wrong = torch.zeros(6, 4)
    wrong[4, 2] = wrong[5, 0] = math.inf
    wrong[3, 1] = math.nan
    with pytest.raises(ScoreError, match="3 of 24 are NaN or infinite, first in sample 3"):
        function(wrong)


def test_one_sample_tells_nothing():
    with pytest.raises(UsageError, match="features of 1 sample; expected two or more"):
        collapse_report(torch.ones(1, 4))


# alarm


def rings(alarm, reports):
    """Number of the report at which the alarm stops the training, or None."""
    for number, report in enumerate(reports, start=1):
        try:
            alarm.update(report)
        except TrainingCollapsed:
            return number
    return None


FAULTS = {
    "RankMe": replace(HEALTHY, rankme=1.4),
    "feature std": replace(HEALTHY, feature_std=0.0099 / 4),
    "cosine to the mean": replace(HEALTHY, cosine_to_mean=0.99995),
    "target variance": replace(HEALTHY, target_variance=0.009),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_figure_rings_after_patience_and_says_why(name, caplog):
    alarm = CollapseAlarm(patience=3)
    alarm.update(replace(HEALTHY, target_variance=1.0))
    with caplog.at_level(logging.WARNING, "monai_vit3d"):
        alarm.update(FAULTS[name])
        alarm.update(FAULTS[name])
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "features may be collapsing (1 of 3)",
        "features may be collapsing (2 of 3)",
    ]
    with pytest.raises(TrainingCollapsed, match=r"3 bad reports in a row.*report 4.*expected.*learning rate") as error:
        alarm.update(FAULTS[name])
    assert [fault for fault in FAULTS if fault in str(error.value)] == [name]
    assert isinstance(error.value, Vit3dError)
    assert isinstance(error.value, RuntimeError)


def test_a_rank_far_below_its_best_rings():
    high, low = replace(HEALTHY, rankme=15.0), replace(HEALTHY, rankme=2.0)
    assert rings(CollapseAlarm(rank_share=0.2), [low] * 5) is None
    assert rings(CollapseAlarm(rank_share=0.2), [low, high, low, low, low]) == 5
    assert rings(CollapseAlarm(rank_share=0.1), [low, high, low, low, low]) is None


def test_one_good_epoch_starts_the_count_anew():
    bad = FAULTS["RankMe"]
    assert rings(CollapseAlarm(patience=3), [bad, bad, HEALTHY, bad, bad, HEALTHY]) is None
    assert rings(CollapseAlarm(patience=1), [HEALTHY, bad]) == 2


@given(seeds, st.integers(8, 200), st.integers(4, 64), st.floats(0, 5), st.integers(3, 20), st.floats(0.01, 1))
def test_healthy_features_do_not_ring(seed, samples, dimensions, offset, count, spread):
    random = collapse_report(gaussian(seed, samples, dimensions) + offset)
    clustered = collapse_report(clusters(seed, count, spread=spread))
    assert rings(CollapseAlarm(patience=1), [random] * 3) is None
    assert rings(CollapseAlarm(patience=1), [clustered] * 3) is None


@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
def test_a_fresh_network_does_not_ring_and_a_constant_one_does(pos_embed):
    torch.manual_seed(0)
    net = VisionTransformer3D(16, 4, embed_dim=48, depth=2, num_heads=4, pos_embed=pos_embed).eval()
    with torch.no_grad():
        tokens = net.forward_features(volumes())[:, 1:]
        fresh = collapse_report(tokens.mean(1), tokens)
        net.patch_embed.proj.weight.mul_(1e-6)
        tokens = net.forward_features(volumes())[:, 1:]
        constant = collapse_report(tokens.mean(1), tokens)
    assert rings(CollapseAlarm(patience=1), [fresh] * 3) is None
    assert rings(CollapseAlarm(patience=3), [fresh, constant, constant, constant]) == 4


def test_features_that_shrink_to_a_line_ring():
    """Dimensional collapse: directions fade one by one while the features stay far apart."""
    base = gaussian(0, 200, 32)
    reports = [collapse_report(base * torch.exp(-step * torch.arange(32.0) / 8)) for step in range(0, 60, 5)]
    number = rings(CollapseAlarm(patience=2), reports)
    assert number is not None
    assert reports[number - 1].relative_std > 0.1
    assert reports[number - 1].rankme < 2.5


@given(st.lists(st.sampled_from([HEALTHY, *FAULTS.values()]), min_size=1, max_size=12), st.integers(0, 12))
def test_a_resumed_alarm_rings_at_the_same_epoch(reports, cut):
    whole = rings(CollapseAlarm(), reports)
    first = CollapseAlarm()
    early = rings(first, reports[:cut])
    if early is not None:
        assert early == whole
        return
    second = CollapseAlarm()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = rings(second, reports[cut:])
    assert whole == (None if rest is None else len(reports[:cut]) + rest)


def test_a_foreign_state_is_refused():
    with pytest.raises(KeyError, match="best_rank"):
        CollapseAlarm().load_state_dict({"epoch": 1, "bad_epochs": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience=0"),
        ({"rank_floor": math.nan}, "rank_floor=nan"),
        ({"rank_share": 1.5}, "rank_share=1.5; expected a number from 0 to 1"),
        ({"cosine_limit": -0.1}, "cosine_limit=-0.1"),
        ({"std_share": math.nan}, "std_share=nan"),
    ],
)
def test_limits_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        CollapseAlarm(**options)
