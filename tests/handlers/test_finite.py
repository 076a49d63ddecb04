"""A loss or a weight that is not finite stops the training, is never saved, and the batch is named."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from torch import nn

from monai_vit3d.data.errors import TrainingDiverged
from monai_vit3d.handlers import AtomicCheckpoint, FiniteCheck
from monai_vit3d.handlers.finite import case_names


def trainer(images, folder, loss=None, network=None, **options):
    """Two epochs over two-case batches of the images."""
    network = nn.Linear(3, 1) if network is None else network
    items = [{"image": image, "label": torch.zeros(1), "name": f"case_{i}"} for i, image in enumerate(images)]
    checkpoint = AtomicCheckpoint(folder, {"network": network})
    optimizer = torch.optim.SGD(network.parameters(), options.pop("lr", 0.1))
    made = SupervisedTrainer(
        torch.device("cpu"), 2, DataLoader(Dataset(items), batch_size=2), network, optimizer, loss or nn.MSELoss(),
        train_handlers=[FiniteCheck(network), checkpoint], **options,
    )  # fmt: skip
    return made, network


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("decollate", [True, False])
def test_the_batch_of_a_loss_that_is_not_finite_is_named_and_never_learnt(value, decollate, tmp_path):
    images = [torch.ones(3) for _ in range(6)]
    images[3][1] = value
    made, network = trainer(images, tmp_path, decollate=decollate)
    with pytest.raises(TrainingDiverged, match=r"epoch 1, iteration 2: the loss is (nan|inf).*case_2, case_3\b"):
        made.run()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert list(tmp_path.glob("[!.]*")) == []  # besides the lock


class InfiniteGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def test_weights_that_a_finite_loss_spoils_are_noticed(tmp_path):
    made, _ = trainer([torch.ones(3)] * 4, tmp_path, loss=lambda pred, label: InfiniteGradient.apply(pred).mean())
    with pytest.raises(TrainingDiverged, match=r"iteration 1: weight has weights that are NaN.*case_0, case_1"):
        made.run()


def test_huge_but_finite_weights_pass(tmp_path):
    network = nn.Linear(3, 1)
    nn.init.constant_(network.weight, 3e38)  # their norm is beyond float32
    made, _ = trainer([torch.zeros(3)] * 4, tmp_path, network=network, lr=0.0)
    made.run()
    assert (tmp_path / "last.pt").is_file()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    network = nn.Linear(2, 2)
    validator = Engine(lambda *_: None)
    validator.state.metrics, validator.state.key_metric_name, validator.state.epoch = {"dice": 0.9}, "dice", 1
    objects = {"network": network}
    checkpoint = AtomicCheckpoint(tmp_path, objects, network, tmp_path / "model.pt", validator)
    network.bias.data[1] = float("nan")
    engine = Engine(lambda *_: None)
    checkpoint.attach(engine)
    with pytest.raises(TrainingDiverged, match="bias"):
        engine.run([0], max_epochs=1)
    assert list(tmp_path.glob("[!.]*")) == []  # besides the lock


def test_a_metric_that_is_nan_is_never_the_best(tmp_path):
    network, metrics = nn.Linear(2, 2), iter([float("nan"), 0.3, float("nan")])
    validator, engine = Engine(lambda *_: None), Engine(lambda *_: None)
    validator.state.key_metric_name = "dice"

    @engine.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        validator.state.epoch, validator.state.metrics = engine.state.epoch, {"dice": next(metrics)}

    AtomicCheckpoint(tmp_path, {"network": network}, network, tmp_path / "model.pt", validator).attach(engine)
    engine.run([0], max_epochs=1)
    assert not (tmp_path / "model.pt").exists()
    engine.state.max_epochs = None
    engine.run([0], max_epochs=2)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best_metric"] == 0.3


def test_names_come_from_the_key_or_the_files():
    image = MetaTensor(torch.zeros(2, 1), meta={"filename_or_obj": ["a.nii", "b.nii"]})
    assert case_names({"image": image}) == ["a.nii", "b.nii"]
    assert case_names({"image": image, "name": ["x", "y"]}) == ["x", "y"]
    assert case_names([{"name": "x"}, {"name": "y"}]) == ["x", "y"]
    assert case_names(torch.zeros(2)) == []
