"""A class that loses half of its score is named with the epoch; with strict the training stops before it is saved."""

import logging

import pytest
import torch
from torch import nn

from monai_vit3d.data.errors import TrainingCollapsed
from monai_vit3d.handlers import AtomicCheckpoint, ClassWatch
from tests.handlers.trainings import CLASS_NAMES, NAN, Scores, trainer

FALL = {1: [[0.9, 0.6]], 2: [[0.8, 0.4]], 3: [[0.9, 0.2], [0.9, NAN]], 4: [[0.9, 0.1]], 5: [[0.9, 0.5]], 6: [[0.9, 0]]}


def run(table, folder, strict=False, **options):
    scores, network = Scores(table), nn.Linear(3, 1)
    watch = ClassWatch(scores.engine, CLASS_NAMES, strict)
    saved = AtomicCheckpoint(folder, {"network": network, "watch": watch})
    trainer([scores, watch, saved], network, steps=1, **options).run()


def falls(caplog):
    return [r.getMessage() for r in caplog.records if r.name.endswith("class_watch")]


def test_each_fall_is_said_once(tmp_path, caplog):
    run(FALL, tmp_path, epochs=6)
    assert falls(caplog) == [
        "epoch 3: the validation score of lesion fell from 0.600 (epoch 1) to 0.200",
        "epoch 6: the validation score of lesion fell from 0.600 (epoch 1) to 0.000",
    ]


def test_a_resumed_run_remembers_the_best_scores(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    run(FALL, tmp_path, epochs=2)
    assert falls(caplog) == []
    run(FALL, tmp_path, epochs=4)
    assert len(falls(caplog)) == 1


def test_strict_stops_before_the_state_is_saved(tmp_path):
    with pytest.raises(TrainingCollapsed, match=r"epoch 3: .*lesion fell from 0\.600 \(epoch 1\) to 0\.200.*learning_"):
        run(FALL, tmp_path, strict=True, epochs=6)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(
    "table",
    [
        {1: [[0.9, 0.15]], 2: [[0.9, 0.0]]},  # never learnt
        {1: [[0.9, 0.6]], 2: [[0.9, 0.31]]},  # more than half is left
        {1: [[0.9, 0.6]], 2: [[0.9, NAN]]},  # in no validation case
        {},
    ],
)
def test_no_fall(table, tmp_path, caplog):
    run(table, tmp_path, strict=True)
    assert falls(caplog) == []
