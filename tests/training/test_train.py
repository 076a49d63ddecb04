"""train_bundle gives the weights of monai.bundle run, resumes, passes over what is finished, and reports its course."""

import csv
import json
import math

import pytest
import torch

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.training_lock import lock_training, unlock_training
from monai_vit3d.training import train_bundle
from monai_vit3d.weights import network_from
from tests.helpers import run_warm
from tests.training.tiny_bundle import CLASS_NAMES, write_tiny


def weights(path):
    return torch.load(path, weights_only=True)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_the_weights_are_those_of_monai_bundle_run(bundle, tmp_path):
    other = write_tiny(tmp_path / "other")
    code, output = run_warm("-m", "monai.bundle", "run", "--config_file", "configs/train.yaml", folder=other)
    assert code == 0, output
    [trained] = train_bundle(bundle)
    assert trained.model == bundle / "models/fold_0.pt"
    assert same(weights(trained.model), weights(other / "models/fold_0.pt"))
    assert network_from(trained.model, num_classes=3).training is False
    assert "trained_on" in json.loads((bundle / "configs/metadata.json").read_text())
    assert load_bundle(bundle, safe=True).network is not None


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights(bundle, tmp_path):
    def interrupt(report):
        if report.epoch == 1:
            raise KeyboardInterrupt

    starts = []
    with pytest.raises(KeyboardInterrupt):
        train_bundle(bundle, on_epoch=interrupt)
    assert not list((bundle / "models").iterdir())
    [resumed] = train_bundle(bundle, on_start=starts.append)
    [whole] = train_bundle(write_tiny(tmp_path / "whole"))
    assert [start.epoch for start in starts] == [1]
    assert same(weights(resumed.model), weights(whole.model))
    curves = [(folder / "runs/fold_0/curve.csv").read_text() for folder in (bundle, tmp_path / "whole/bundle")]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_all_folds_one_after_another_without_the_finished_ones(bundle):
    train_bundle(bundle, 1, overrides={"epochs": 1}, finish=False)
    before = (bundle / "models/fold_1.pt").read_bytes()
    records = train_bundle(bundle, "all", overrides={"val_interval": 2})
    assert [(r.fold, r.status) for r in records] == [(0, "trained"), (1, "was trained")]
    assert (bundle / "models/fold_1.pt").read_bytes() == before
    [longer] = train_bundle(bundle, [1], overrides={"epochs": 2})
    assert longer.status == "trained"
    assert weights(bundle / "runs/fold_1/last.pt")["epoch"] == 2


@pytest.mark.slow
def test_reports_are_what_the_run_folder_has(bundle):
    starts, steps, cases, reports = [], [], [], []
    train_bundle(
        bundle, 1, overrides={"epochs": 3, "val_interval": 2}, on_start=starts.append,
        on_step=lambda: steps.append(1), on_validation=lambda *count: cases.append(count), on_epoch=reports.append,
    )  # fmt: skip
    [start] = starts
    assert (start.fold, start.epoch, start.epochs, start.steps) == (1, 0, 3, 2)
    assert len(steps) == 6
    assert cases == [(1, 2), (2, 2)] * 2  # after epoch 2, and after the last one
    with open(bundle / "runs/fold_1/curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [f"{report.loss:.6g}" for report in reports] == [row["loss"] for row in rows]
    assert [report.scores is None for report in reports] == [True, False, False]
    assert reports[2].scores.classes.keys() == {"liver", "lesion"} == set(CLASS_NAMES.values()) - {"background"}
    assert f"{reports[2].scores.mean:.6g}" == rows[2]["mean"]
    assert reports[2].seconds_left == 0 < reports[0].seconds_left < math.inf
    pictures = {path.name for path in (bundle / "runs/fold_1/overlays").rglob("*.png")}
    assert len(pictures) == 2  # of a fold with two cases
    assert "finished" in (bundle / "runs/fold_1/train.log").read_text()


@pytest.mark.slow
def test_frozen_epochs_and_pretrained_weights(bundle, tmp_path):
    [first] = train_bundle(bundle)
    choices = {"frozen_epochs": 1, "layer_decay": 0.75, "clip_norm": 1.0}
    other = write_tiny(tmp_path / "other", pretrained=str(first.model), **choices)
    encoders = []

    def note(report):
        state = weights(other / "runs/fold_0/last.pt")["network"]
        encoders.append({key: value for key, value in state.items() if key.startswith("backbone.blocks")})

    train_bundle(other, overrides={"epochs": 3, "warmup_epochs": 0}, on_epoch=note)
    start = {key: value for key, value in weights(first.model).items() if key.startswith("backbone.blocks")}
    assert [same(encoder, start) for encoder in encoders] == [True, False, False]


@pytest.mark.slow
def test_two_processes_train_every_fold(bundle):
    code, output = run_warm("-m", "monai_vit3d.cli", "train", bundle, "--fold", "all", processes=2)
    assert code == 0, output
    assert {path.name for path in (bundle / "models").iterdir()} == {"fold_0.pt", "fold_1.pt"}
    assert output.count("trained: ") == 2  # the first process speaks for all


@pytest.mark.slow
def test_another_training_in_the_folder_is_refused_and_the_lock_released(bundle):
    code = f"from monai_vit3d.training import train_bundle; train_bundle({str(bundle)!r})"
    lock_training(bundle / "runs/fold_0/last.pt")
    try:
        status, output = run_warm("-c", code)
    finally:
        unlock_training(bundle / "runs/fold_0/last.pt")
    assert status == 1
    assert "UsageError" in output
    assert "another training is writing here" in output
    status, output = run_warm("-c", code)
    assert status == 0, output


def test_strict_needs_an_entry(bundle):
    config = bundle / "configs/train.yaml"
    config.write_text(config.read_text().replace("strict: false", "# strict").replace("'@strict'", "false"))
    with pytest.raises(UsageError, match=r"strict=True: .*train\.yaml has no entry strict"):
        train_bundle(bundle, strict=True)


@pytest.mark.slow
def test_a_caller_keeps_its_hooks_and_loggers(bundle):
    import logging
    import sys

    before = sys.excepthook, list(sys.path), logging.getLogger().level, list(logging.getLogger().handlers)
    train_bundle(bundle, overrides={"epochs": 1}, finish=False)
    assert (sys.excepthook, sys.path, logging.getLogger().level, logging.getLogger().handlers) == before
