"""The best weights are published when all epochs are done, and not before."""

import torch
from ignite.engine import Events
from torch import nn

from monai_vit3d.handlers import AtomicCheckpoint, PublishModel
from tests.handlers.trainings import NAN, Scores, trainer


def run(folder, table, stop=None, rank=0, **options):
    scores, network = Scores(table), nn.Linear(3, 1)
    saved = AtomicCheckpoint(folder, {"network": network}, network, folder / "best.pt", scores.engine)
    published = PublishModel(folder / "best.pt", folder / "models/fold_0.pt", network, rank)
    handlers = [scores, saved, published, *([stop] if stop else [])]
    trainer(handlers, network, **options).run()
    return network


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_the_best_weights_are_published(tmp_path):
    last = run(tmp_path, {1: [[0.5, 0.5]], 2: [[0.1, 0.1]]}).state_dict()
    published, best = (torch.load(tmp_path / name, weights_only=True) for name in ("models/fold_0.pt", "best.pt"))
    assert same(published, best)
    assert not same(published, last)


def test_without_a_score_the_weights_at_the_end_are_published(tmp_path):
    last = run(tmp_path, {2: [[NAN, NAN]]}).state_dict()
    assert same(torch.load(tmp_path / "models/fold_0.pt", weights_only=True), last)


def test_a_training_that_ends_early_publishes_nothing(tmp_path):
    class Stop:
        def attach(self, engine):
            engine.add_event_handler(Events.EPOCH_COMPLETED, engine.terminate)

    run(tmp_path, {1: [[0.5, 0.5]]}, Stop())
    assert (tmp_path / "best.pt").is_file()
    assert not (tmp_path / "models").exists()


def test_a_finished_training_that_is_started_again_publishes_again(tmp_path):
    run(tmp_path, {1: [[0.5, 0.5]]})
    (tmp_path / "models/fold_0.pt").unlink()
    run(tmp_path, {})
    assert (tmp_path / "models/fold_0.pt").read_bytes() == (tmp_path / "best.pt").read_bytes()


def test_only_the_first_process_publishes(tmp_path):
    run(tmp_path, {1: [[0.5, 0.5]]}, rank=1)
    assert not (tmp_path / "models").exists()
