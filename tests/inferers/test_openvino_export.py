"""Exports to OpenVINO: by a trace where that holds, by torch.export where it does not."""

import logging

import pytest
import torch
from torch import nn

from monai_vit3d.inferers import BackendNetwork
from monai_vit3d.inferers.openvino_export import export_to_openvino
from tests.inferers.networks import segmenter, volumes


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class CountsBatch(nn.Module):
    """Its answer depends on the batch by a number that a trace takes for a constant."""

    def forward(self, x):
        return x * int(x.shape[0])


@pytest.fixture
def ways(monkeypatch):
    """Names of the exporters as they are called."""
    called, trace, export = [], torch.jit.trace, torch.export.export
    monkeypatch.setattr(torch.jit, "trace", lambda *a, **k: (called.append("trace"), trace(*a, **k))[1])
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: (called.append("export"), export(*a, **k))[1])
    return called


def test_a_trace_is_enough(ways):
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4), nn.GELU()).eval()
    fast = BackendNetwork(net, "openvino")
    for batch in (1, 3):
        torch.testing.assert_close(fast(volumes(batch)), net(volumes(batch)), atol=1e-5, rtol=1e-5)
    assert ways == ["trace", "trace"]


@pytest.mark.slow
def test_an_answer_that_depends_on_the_batch_is_never_wrong(tmp_path):
    net = CountsBatch().eval()
    for batch in (2, 1, 3):
        torch.testing.assert_close(BackendNetwork(net, "auto", tmp_path)(volumes(batch)), net(volumes(batch)))


@pytest.mark.slow
def test_a_network_that_keeps_foreground_masks_background_in_a_trace(ways):
    net = segmenter()
    net.backbone.set_tokens("foreground")
    x = volumes()
    x[:, :, :8] = 0
    torch.testing.assert_close(BackendNetwork(net, "openvino")(x), net(x), atol=1e-4, rtol=1e-4)
    assert ways == ["trace"]


class KeepsBatch(nn.Module):
    """What a trace of SwinUNETR does: a shape in it is that of the traced batch."""

    def forward(self, x):
        batch = 2 if torch.jit.is_tracing() else x.shape[0]
        return x * torch.full((batch, 1, 1, 1, 1), 0.5)


class RefusesTraces(nn.Conv3d):
    """A network that TorchScript cannot run."""

    def forward(self, x):
        if torch.jit.is_tracing():
            raise RuntimeError("not in TorchScript")
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("net", [KeepsBatch(), RefusesTraces(1, 2, 3)])
def test_where_a_trace_does_not_hold_torch_export_does(ways, net):
    for batch in (1, 2, 4):
        out, expected = BackendNetwork(net.eval(), "openvino")(volumes(batch)), net(volumes(batch))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert ways == ["trace", "export"] * 3


class Eigenvalues(nn.Module):
    """What OpenVINO has no operation for."""

    def forward(self, x):
        return torch.linalg.eigvalsh(x)


@pytest.mark.slow
def test_a_network_that_cannot_be_converted_leaves_logging_as_it_was():
    root = logging.getLogger()
    before = (root.level, [*root.filters], [*root.handlers])
    with pytest.raises(Exception, match=r"(?i)eig"):
        export_to_openvino(Eigenvalues().eval(), (1, 1, 8, 8, 8))
    assert (root.level, root.filters, root.handlers) == before
