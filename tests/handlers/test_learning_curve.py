"""The table holds what the engines had, a resumed run's too, and the picture appears with each validation."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from monai_vit3d.handlers import AtomicCheckpoint, LearningCurve
from tests.handlers.trainings import CLASS_NAMES, NAN, Scores, trainer


def table(folder):
    with open(folder / "curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def curve(folder, scores=None, **options):
    network = nn.Linear(3, 1)
    nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
    optimizer = torch.optim.SGD([{"params": network.weight, "lr": 0.01}, {"params": network.bias, "lr": 0.1}])
    made = LearningCurve(folder, optimizer, scores and scores.engine, CLASS_NAMES)
    saved = AtomicCheckpoint(folder, {"network": network, "curve": made})
    handlers = [*([scores] if scores else []), made, saved]
    return trainer(handlers, network, optimizer=optimizer, **options)


def test_losses_rates_and_scores_are_those_of_the_engines(tmp_path):
    scores = Scores({2: [[0.5, NAN], [0.7, 0.2]]})
    curve(tmp_path, scores, epochs=3).run()
    rows = table(tmp_path)
    # by hand, float64: target 1, inputs 1, w = b = 0 at first; the gradient of (p - 1)^2 is 2 (p - 1) for w and b
    prediction, losses = 0.0, []
    for _ in range(6):
        losses.append((prediction - 1) ** 2)
        prediction -= 2 * (prediction - 1) * (3 * 0.01 + 0.1)
    expected = np.array(losses).reshape(3, 2).mean(axis=1)
    assert [float(row["loss"]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {row["learning_rate"] for row in rows} == {"0.1"}
    assert [row["mean"] for row in rows] == ["", f"{np.mean([0.5, 0.7, 0.2]):.6g}", ""]
    assert [(row["liver"], row["lesion"]) for row in rows] == [("", ""), ("0.6", "0.2"), ("", "")]


@pytest.mark.slow
def test_a_resumed_run_has_the_whole_curve(tmp_path):
    table_of_scores = {1: [[0.5, 0.1]], 3: [[0.6, 0.3]]}
    curve(tmp_path / "two", Scores(table_of_scores), epochs=2).run()
    curve(tmp_path / "two", Scores(table_of_scores), epochs=4).run()
    curve(tmp_path / "one", Scores(table_of_scores), epochs=4).run()
    assert table(tmp_path / "two") == table(tmp_path / "one")


def test_the_picture_is_drawn_with_each_validation_and_at_the_end(tmp_path):
    curve(tmp_path / "none", epochs=1).run()  # of the loss alone
    curve(tmp_path / "scores", Scores({1: [[0.5, 0.1]]}), epochs=1).run()
    loss, both = (Image.open(tmp_path / name / "curve.png").size for name in ("none", "scores"))
    assert both == (loss[0], 2 * loss[1])


def test_only_the_first_process_writes(tmp_path):
    network = nn.Linear(3, 1)
    trainer([LearningCurve(tmp_path, torch.optim.SGD(network.parameters(), 0.1), rank=1)], network).run()
    assert list(tmp_path.iterdir()) == []
