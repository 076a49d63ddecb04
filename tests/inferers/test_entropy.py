"""How undecided a prediction is, against scipy's entropy in float64."""

import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import entropy

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import PredictionEntropy
from monai_vit3d.inferers import entropy as module

LOGITS = 3 * torch.randn(1, 4, 12, 10, 14, generator=torch.Generator().manual_seed(0))


def test_softmax_of_classes_that_exclude_each_other():
    meter = PredictionEntropy(LOGITS.shape[2:], "softmax")
    for planes in LOGITS.split((5, 4, 3), dim=2):
        meter.add(planes)
    rows = LOGITS[0].flatten(1).T.double().numpy()
    total = entropy(softmax(rows, axis=1), base=4, axis=1).sum()
    assert meter.per_labelled_voxel == pytest.approx(total / (rows.argmax(axis=1) > 0).sum(), rel=1e-6)


def test_sigmoid_of_classes_that_may_overlap():
    meter = PredictionEntropy(LOGITS.shape[2:], "sigmoid")
    meter.add(LOGITS)
    rows = LOGITS[0].flatten(1).T.double().numpy()
    p = expit(rows)
    total = entropy([p, 1 - p], base=2).mean(axis=1).sum()
    assert meter.per_labelled_voxel == pytest.approx(total / (rows > 0).any(axis=1).sum(), rel=1e-6)


def test_nothing_but_background_has_none_and_so_has_a_softmax_of_one_class():
    meter = PredictionEntropy((4, 4, 4), "softmax")
    meter.add(torch.tensor([5.0, 0.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 4, 4, 4))
    assert meter.per_labelled_voxel is None
    meter.add(torch.ones(1, 1, 4, 4, 4))
    assert meter.per_labelled_voxel is None


def test_a_large_grid_is_sampled_and_gives_nearly_the_same(monkeypatch):
    whole = PredictionEntropy(LOGITS.shape[2:], "softmax")
    whole.add(LOGITS)
    monkeypatch.setattr(module, "SAMPLE_VOXELS", LOGITS[0, 0].numel() // 4)
    part = PredictionEntropy(LOGITS.shape[2:], "softmax")
    part.add(LOGITS)
    assert part.step == 2
    assert 0 < part.foreground < whole.foreground / 2
    assert part.per_labelled_voxel == pytest.approx(whole.per_labelled_voxel, rel=0.1)


def test_restarted():
    meter = PredictionEntropy((12, 10, 14), "softmax")
    meter.add(LOGITS)
    first = meter.per_labelled_voxel
    meter.restart()
    meter.add(LOGITS)
    assert meter.per_labelled_voxel == first


def test_another_activation():
    with pytest.raises(UsageError, match="one of"):
        PredictionEntropy((4, 4, 4), "relu")
