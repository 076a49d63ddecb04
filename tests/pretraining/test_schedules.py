"""Schedules against their closed forms, at their ends and past them."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.errors import UsageError
from monai_vit3d.pretraining import learning_rate_at, momentum_at, weight_decay_at

lengths = st.integers(1, 10_000)


@given(total=lengths, share=st.floats(0, 0.99))
def test_learning_rate(total, share):
    warmup = int(share * total)
    rate = partial(learning_rate_at, total=total, warmup=warmup, peak=2e-3, start=1e-4, end=1e-6)
    steps = np.unique(np.linspace(0, total, 50).astype(int))
    rise = 1e-4 + (2e-3 - 1e-4) * steps / max(warmup, 1)
    fall = 1e-6 + (2e-3 - 1e-6) * 0.5 * (1 + np.cos(np.pi * (steps - warmup) / (total - warmup)))
    np.testing.assert_allclose([rate(int(s)) for s in steps], np.where(steps < warmup, rise, fall), rtol=1e-9)
    assert rate(warmup) == 2e-3
    assert rate(total) == rate(total + 1) == rate(3 * total) == 1e-6


@given(total=lengths)
def test_weight_decay(total):
    decays = np.array([weight_decay_at(int(s), total) for s in np.linspace(0, total, 50).astype(int)])
    assert decays[0] == 0.04
    assert decays[-1] == weight_decay_at(total + 7, total) == 0.4
    assert (np.diff(decays) >= 0).all()
    for s in (total // 3, total // 2):
        want = 0.4 - 0.36 * (np.cos(np.pi * s / total) + 1) / 2
        assert weight_decay_at(s, total) == pytest.approx(want, rel=1e-12)


@given(total=lengths)
def test_momentum(total):
    for s in np.linspace(0, total, 20).astype(int):
        assert momentum_at(int(s), total) == pytest.approx(0.996 + 0.004 * s / total, rel=1e-12)
        assert momentum_at(int(s), total) <= 1
    assert momentum_at(0, total) == 0.996
    assert momentum_at(total, total) == momentum_at(total + 1, total) == 1
    assert momentum_at(1, 4, 0.8, 0.9) == pytest.approx(0.825)


@pytest.mark.parametrize("schedule", [learning_rate_at, weight_decay_at, momentum_at])
@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_steps_out_of_range(schedule, step, total):
    with pytest.raises(UsageError, match=f"step={step} of total={total}"):
        schedule(step, total)


@pytest.mark.parametrize("warmup", [-1, 10])
def test_warmup_out_of_range(warmup):
    with pytest.raises(UsageError, match="fewer than total"):
        learning_rate_at(0, 10, warmup=warmup)
