"""A run that stops and resumes ends with the weights of one that never stopped; files are whole or not there."""

import os

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandGaussianNoised, RandSpatialCropd
from torch import nn

from monai_vit3d.data import WeightsError
from monai_vit3d.handlers import AtomicCheckpoint, EMAHandler, EpochSeed, moving_average, save_atomic


def make_trainer(folder, epochs, seed=0, total=8):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.GELU(), nn.Dropout(0.3), nn.Conv3d(4, 1, 1))
    generator = torch.Generator().manual_seed(7)
    volumes = [torch.randn(1, 8, 8, 8, generator=generator) for _ in range(5)]
    transform = Compose(
        [RandSpatialCropd(["image", "label"], (4, 4, 4), random_size=False), RandGaussianNoised("image", prob=0.7)]
    )
    dataset = CacheDataset([{"image": v, "label": v.abs()} for v in volumes], transform, progress=False)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    schedule = WarmupCosineSchedule(optimizer, 2, total)
    average = moving_average(network, 0.9)
    objects = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
    handlers = [
        EpochSeed(3, dataset),
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
        EMAHandler(average, network),
        AtomicCheckpoint(folder, objects),
    ]
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        DataLoader(dataset, batch_size=2, shuffle=True, drop_last=True),
        network,
        optimizer,
        nn.MSELoss(),
        train_handlers=handlers,
    )
    return trainer, objects


def test_resume_is_exact(tmp_path):
    whole, expected = make_trainer(tmp_path / "whole", epochs=4)
    whole.run()
    stopped = make_trainer(tmp_path / "parts", epochs=4)[0]
    stopped.add_event_handler(Events.EPOCH_COMPLETED(once=2), stopped.terminate)
    stopped.run()
    rest, found = make_trainer(tmp_path / "parts", epochs=4, seed=99)  # other initial weights: all must come back
    torch.rand(17)  # and another place in the random stream
    rest.run()
    assert rest.state.iteration == whole.state.iteration == 8
    for name in ("network", "average"):
        for key, value in expected[name].state_dict().items():
            assert torch.equal(value, found[name].state_dict()[key]), (name, key)
    assert expected["optimizer"].param_groups[0]["lr"] == found["optimizer"].param_groups[0]["lr"]


def test_more_epochs_follow_the_schedule_of_the_longer_run(tmp_path):
    make_trainer(tmp_path, epochs=2)[0].run()
    trainer, objects = make_trainer(tmp_path, epochs=4, total=16, seed=99)
    found = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda _: found.append(objects["optimizer"].param_groups[0]["lr"])
    )
    trainer.run()
    assert (trainer.state.epoch, trainer.state.iteration) == (4, 8)
    longer = [0.0, 5e-3] + [1e-2 * 0.5 * (1 + np.cos(np.pi * (step - 2) / 14)) for step in range(2, 16)]  # by hand
    np.testing.assert_allclose(found, longer[4:8], rtol=1e-12)
    assert objects["average"].n_averaged == 8


def test_fewer_epochs_than_were_done_are_refused(tmp_path):
    make_trainer(tmp_path, epochs=3)[0].run()
    with pytest.raises(WeightsError, match=r"last\.pt.*3 epochs done.*after 2"):
        make_trainer(tmp_path, epochs=2)[0].run()


@pytest.mark.parametrize("damage", ["cut", "another network", "other steps"])
def test_foreign_checkpoint_is_refused(damage, tmp_path):
    make_trainer(tmp_path, epochs=1)[0].run()
    last = tmp_path / "last.pt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "another network":
        state = torch.load(last, weights_only=True)
        state["network"]["0.weight"] = torch.zeros(3)
        torch.save(state, last)
    elif damage == "other steps":
        state = torch.load(last, weights_only=True)
        torch.save({**state, "length": [2, 3]}, last)
    before = last.read_bytes()
    match = {"cut": "not a readable", "another network": "size mismatch", "other steps": "3 steps in an epoch.*has 2"}[
        damage
    ]
    with pytest.raises(WeightsError, match=rf"(?s)last\.pt: .*{match}"):
        make_trainer(tmp_path, epochs=2)[0].run()
    assert last.read_bytes() == before


def test_epoch_seed_depends_on_seed_epoch_and_rank():
    def draw(seed, epoch, rank):
        engine = Engine(lambda *_: None)
        engine.state.epoch = epoch
        EpochSeed(seed, [], rank=rank)(engine)
        return torch.rand(1).item(), np.random.rand()

    draws = [draw(0, 1, 0), draw(1, 1, 0), draw(0, 2, 0), draw(0, 1, 1)]
    assert draw(0, 1, 0) == draws[0]
    assert len(set(draws)) == 4


def test_moving_average_is_the_formula():
    network = nn.Linear(3, 1)
    average = moving_average(network, decay=0.75)
    handler = EMAHandler(average, network)
    first = network.weight.detach().clone()
    handler(None)  # the first update copies
    with torch.no_grad():
        network.weight.add_(1.0)
    handler(None)
    torch.testing.assert_close(average.module.weight, 0.75 * first + 0.25 * (first + 1))
    with pytest.raises(ValueError, match="decay=1"):
        moving_average(network, decay=1.0)


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.pt"
    save_atomic({"a": torch.ones(2)}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomic({"a": lambda: None}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["model.pt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_file_before_the_last_stays(tmp_path):
    make_trainer(tmp_path, epochs=3)[0].run()
    epochs = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True)["epoch"] for name in ("last", "previous")}
    assert epochs == {"last": 3, "previous": 2}


def test_what_stopped_between_the_two_files_goes_on_exactly(tmp_path):
    whole, expected = make_trainer(tmp_path / "whole", epochs=4)
    whole.run()
    stopped = make_trainer(tmp_path / "parts", epochs=4)[0]
    stopped.add_event_handler(Events.EPOCH_COMPLETED(once=2), stopped.terminate)
    stopped.run()
    (tmp_path / "parts" / "last.pt").unlink()  # previous.pt is of epoch 1
    rest, found = make_trainer(tmp_path / "parts", epochs=4, seed=99)
    rest.run()
    for key, value in expected["average"].state_dict().items():
        assert torch.equal(value, found["average"].state_dict()[key]), key


def test_a_damaged_last_file_names_the_one_before(tmp_path):
    make_trainer(tmp_path, epochs=2)[0].run()
    (tmp_path / "last.pt").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"last\.pt.*previous\.pt over it"):
        make_trainer(tmp_path, epochs=2)[0].run()


def test_weights_given_after_the_start_are_trained_not_the_files(tmp_path, caplog):
    make_trainer(tmp_path, epochs=2)[0].run()
    trainer, objects = make_trainer(tmp_path, epochs=1)
    given = {key: torch.full_like(value, 0.5) for key, value in objects["network"].state_dict().items()}
    objects["network"].load_state_dict(given)
    started = []
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda _: started.append([p.clone() for p in objects["network"].parameters()])
    )
    trainer.run()
    assert all(torch.equal(value, torch.full_like(value, 0.5)) for value in started[0])
    assert "not resumed from" in caplog.text
    # the average holds nothing of the weights before
    assert objects["average"].n_averaged == 2


def test_a_second_run_of_a_trainer_goes_on_with_what_it_was_given(tmp_path):
    trainer, objects = make_trainer(tmp_path, epochs=1)
    trainer.run()
    with torch.no_grad():
        for parameter in objects["network"].parameters():
            parameter.fill_(0.25)
    trainer.state.max_epochs = 2
    started = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda _: started.append(objects["network"][0].weight.clone()))
    trainer.run()
    assert (started[0] == 0.25).all()
    assert trainer.state.epoch == 2
    assert objects["average"].n_averaged == 2  # of the two steps after the new weights


def test_the_average_goes_on_with_the_same_weights_however_they_were_written(tmp_path):
    trainer, objects = make_trainer(tmp_path, epochs=1)
    trainer.run()
    network = objects["network"]
    network.load_state_dict({key: value.clone() for key, value in network.state_dict().items()})
    trainer.state.max_epochs = 2
    trainer.run()
    assert objects["average"].n_averaged == 4
    network[0].weight.data = network[0].weight.data + 1
    trainer.state.max_epochs = 3
    trainer.run()
    assert objects["average"].n_averaged == 2


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_wrapped_network_is_saved_and_resumed_under_its_own_names(wrap, tmp_path):
    objects = {"network": wrap(nn.Sequential(nn.Linear(2, 2)))}
    engine = Engine(lambda *_: None)
    AtomicCheckpoint(tmp_path, objects).attach(engine)
    engine.run([0], max_epochs=1)
    held = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
    assert list(held) == ["0.weight", "0.bias"]
    other = nn.Sequential(nn.Linear(2, 2))
    again = Engine(lambda *_: None)
    AtomicCheckpoint(tmp_path, {"network": other}).attach(again)
    again.run([0], max_epochs=2)
    assert torch.equal(other[0].weight, held["0.weight"])
