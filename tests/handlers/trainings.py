"""Trainings of a few weights whose scores are given, for the tests of handlers."""

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import nn

CLASS_NAMES = {"0": "background", "1": "liver", "2": "lesion"}
NAN = float("nan")


class Scores:
    """A validator that gives scores by class, from a table by epoch; nothing in other epochs."""

    def __init__(self, table):
        self.table, self.engine = table, Engine(lambda *_: None)
        self.engine.state.key_metric_name, self.engine.state.metrics = "val_dice", {}
        self.engine.state.metric_details = {}

    def attach(self, trainer):
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)

    def validate(self, trainer):
        cases = self.table.get(trainer.state.epoch)
        if cases is None:
            return
        state, details = self.engine.state, torch.tensor(cases)
        state.epoch, state.metrics = trainer.state.epoch, {"val_dice": float(details.nanmean())}
        state.metric_details = {"val_dice": details}


def trainer(handlers, network=None, epochs=2, steps=2, loss=None, optimizer=None):
    """A MONAI trainer on batches of one case."""
    network = nn.Linear(3, 1) if network is None else network
    items = [{"image": torch.ones(3), "label": torch.ones(1), "name": f"case_{i}"} for i in range(steps)]
    optimizer = optimizer or torch.optim.SGD(network.parameters(), 0.1)
    return SupervisedTrainer(
        torch.device("cpu"), epochs, DataLoader(Dataset(items)), network, optimizer, loss or nn.MSELoss(),
        train_handlers=handlers,
    )  # fmt: skip
