"""The encoder stays as it is for the first epochs, in a resumed run too, and is trained after them."""

import pytest
import torch
from ignite.engine import Events
from torch import nn

from monai_vit3d.handlers import AtomicCheckpoint, FreezeEncoder
from tests.handlers.trainings import trainer


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.decoder = nn.Linear(3, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.decoder(self.backbone(x))


class Weights:
    """Notes weights at the end of each epoch."""

    def __init__(self, network):
        self.network, self.noted = network, []

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine):
        self.noted.append({key: value.clone() for key, value in self.network.state_dict().items()})


def run(folder, epochs, frozen, frozen_before=()):
    torch.manual_seed(0)
    network = Network()
    for name in frozen_before:
        network.get_parameter(name).requires_grad_(False)
    start = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), 0.1, weight_decay=0.1)
    weights, objects = Weights(network), {"network": network, "optimizer": optimizer}
    handlers = [weights, FreezeEncoder(network, frozen), AtomicCheckpoint(folder, objects)]
    trainer(handlers, network, epochs, optimizer=optimizer).run()
    return start, weights.noted


def test_the_encoder_is_trained_after_its_epochs(tmp_path):
    start, noted = run(tmp_path, 4, 2)
    unchanged = [
        [torch.equal(state[key], start[key]) for key in ("backbone.weight", "decoder.weight")] for state in noted
    ]
    assert unchanged == [[True, False], [True, False], [False, False], [False, False]]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_weights(stop, tmp_path):
    _, whole = run(tmp_path / "whole", 4, 2)
    run(tmp_path / "parts", stop, 2)
    _, parts = run(tmp_path / "parts", 4, 2)
    assert all(torch.equal(whole[-1][key], parts[-1][key]) for key in whole[-1])


def test_what_was_frozen_before_stays_so(tmp_path):
    start, noted = run(tmp_path, 3, 1, ["backbone.weight"])
    assert torch.equal(noted[-1]["backbone.weight"], start["backbone.weight"])
    assert not torch.equal(noted[-1]["backbone.bias"], start["backbone.bias"])


def test_no_epochs_freeze_nothing(tmp_path):
    start, noted = run(tmp_path, 1, 0)
    assert not torch.equal(noted[0]["backbone.weight"], start["backbone.weight"])
