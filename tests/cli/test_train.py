"""The training verb: plain lines where there is no terminal, a bar with the time that is left on one."""

import io
import logging
import re
import sys

import pytest

from monai_vit3d.cli.command import main
from monai_vit3d.cli.train_progress import TrainProgress
from monai_vit3d.handlers.validation_scores import ValidationScores
from monai_vit3d.training import EpochReport, StartReport
from tests.training.tiny_bundle import write_tiny


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(progress):
    """Two epochs of two steps, the second validated."""
    progress.start(StartReport(1, 0, 2, 2))
    progress.step(), progress.step()
    progress.epoch(EpochReport(1, 1, 2, 0.75, 3725.4))
    progress.step(), progress.step()
    progress.validate(1, 1)
    scores = ValidationScores(0.5, {"liver": 0.75, "lesion": 0.25, "cyst": None})
    progress.epoch(EpochReport(1, 2, 2, 0.5, 0.0, scores, True))
    progress.finish()


def test_plain_lines_where_there_is_no_terminal(capsys):
    with TrainProgress() as progress:
        show(progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "fold 1: 2 epochs of 2 steps",
        "fold 1, epoch 1/2: loss 0.750, 1:02:05 left",
        "fold 1, epoch 2/2: loss 0.500, validation score 0.500 (liver 0.750, lesion 0.250), best so far, 0:00:00 left",
    ]
    assert len(lines) == 4


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with TrainProgress() as progress:
        show(progress)
    text = terminal.getvalue()
    assert re.search(r"fold 1: 100%.* 4/4 \[\d\d:\d\d<\d\d:\d\d", text)
    assert re.search(r"epoch 2: \d:\d\d:\d\d left|validates 1/1", text)
    assert "epoch 2/2: loss 0.500, validation score 0.500 (liver 0.750, lesion 0.250), best so far" in text


def test_the_screen_gets_warnings_and_what_was_chosen_at_the_end(capsys):
    handler, logger = logging.StreamHandler(sys.stderr), logging.getLogger("monai_vit3d")
    level = logger.level
    logger.addHandler(handler), logger.setLevel(logging.INFO)
    try:
        with TrainProgress():
            logging.getLogger("monai_vit3d.handlers.checkpoint").info("saved")
            logging.getLogger("monai_vit3d.handlers.class_watch").warning("a class fell")
            logging.getLogger("monai_vit3d.bundle.open_config").warning("is code that runs here")
            logging.getLogger("monai_vit3d.evaluation.finish").info("liver: keeping all")
        logger.info("after it")
    finally:
        logger.removeHandler(handler), logger.setLevel(level)
    assert capsys.readouterr().err.splitlines() == ["a class fell", "liver: keeping all", "after it"]


def test_other_processes_are_silent(capsys):
    with TrainProgress(silent=True) as progress:
        show(progress)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_command_trains_and_names_the_weights(tmp_path, capsys):
    bundle = write_tiny(tmp_path)
    assert main(["train", str(bundle), "--set", "epochs=1", "--set", "learning_rate=1e-4"]) == 0
    out, err = capsys.readouterr()
    assert out == f"trained: {bundle / 'models/fold_0.pt'}\n"
    assert err.startswith("fold 0: 1 epochs of 2 steps\nfold 0, epoch 1/1: loss ")
    assert main(["train", str(bundle), "--fold", "all", "--shard", "1/2"]) == 0
    assert capsys.readouterr().out == f"was trained: {bundle / 'models/fold_0.pt'}\n"


@pytest.mark.parametrize("shard", ["0/2", "3/2", "x"])
def test_a_shard_that_is_none_is_refused(shard, tmp_path, capsys):
    assert main(["train", str(tmp_path), "--shard", shard]) == 2
    assert "--shard" in capsys.readouterr().err
