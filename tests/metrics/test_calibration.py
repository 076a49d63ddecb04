"""The temperature is the best one, scales with the logits, and never makes things worse."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_vit3d.data import ScoreError
from monai_vit3d.metrics import fit_temperature


def calibrated_logits(seed, cases, classes):
    """Logits, and class numbers drawn from their softmax: temperature 1 is right for them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((cases, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = [rng.choice(classes, p=p) for p in probabilities]
    return torch.tensor(logits), torch.eye(classes, dtype=torch.float32)[labels]


def test_calibrated_logits_have_temperature_one():
    assert fit_temperature(*calibrated_logits(0, 20000, 4), nn.CrossEntropyLoss()) == pytest.approx(1, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "numbers", "labels"])
def test_temperature_is_the_best_of_a_fine_grid(kind):
    logits, targets = calibrated_logits(1, 200, 3)
    logits = 2.5 * logits
    loss = nn.BCEWithLogitsLoss() if kind == "labels" else nn.CrossEntropyLoss()
    targets = targets.argmax(1) if kind == "numbers" else targets
    found = fit_temperature(logits.float(), targets, loss)
    wide = torch.linspace(0.2, 20, 20000, dtype=torch.float64)
    truth = targets if kind == "numbers" else targets.double()
    losses = torch.stack([loss(logits / t, truth) for t in wide])
    assert found == pytest.approx(wide[losses.argmin()].item(), abs=2e-3)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.booleans())
def test_scaled_logits_have_a_scaled_temperature(seed, scale, multi_label):
    logits, targets = calibrated_logits(seed, 100, 3)
    loss = nn.BCEWithLogitsLoss() if multi_label else nn.CrossEntropyLoss()
    one = fit_temperature(logits, targets, loss)
    assert fit_temperature(scale * logits, targets, loss) == pytest.approx(scale * one, rel=1e-4)
    assert loss(logits / one, targets.double()) <= loss(logits, targets.double())
    assert torch.equal((logits / one).argmax(1), logits.argmax(1))


def test_loss_with_float32_class_weights():
    logits, targets = calibrated_logits(2, 300, 3)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    found = fit_temperature(logits.float(), targets, loss)
    assert loss.weight.dtype == torch.float32
    values = [loss(logits.float() / t, targets).item() for t in (0.95 * found, found, 1.05 * found)]
    assert min(values) == values[1]


@pytest.mark.parametrize("logits", [10 * torch.eye(3), torch.ones(3, 3), -torch.eye(3)])
def test_without_a_best_temperature_it_stays_one(logits, caplog):
    # all right: ever surer is better; no information: all the same; all wrong: ever less sure is better
    with caplog.at_level(logging.WARNING, "monai_vit3d"):
        assert fit_temperature(logits, torch.eye(3), nn.CrossEntropyLoss()) == 1.0
    assert "no temperature is best for these 3 cases" in caplog.text


def test_bad_logits_are_named():
    loss = nn.CrossEntropyLoss()
    with pytest.raises(ScoreError, match="0 logits and 0 targets"):
        fit_temperature(torch.empty(0, 3), torch.empty(0, 3), loss)
    with pytest.raises(ScoreError, match="3 logits and 2 targets"):
        fit_temperature(torch.eye(3), torch.eye(3)[:2], loss)
    logits = torch.eye(3)
    logits[1, 2] = logits[1, 0] = float("nan")
    with pytest.raises(ScoreError, match="logits of 1 of 3 cases are NaN or infinite, case 1 first"):
        fit_temperature(logits, torch.eye(3), loss)
