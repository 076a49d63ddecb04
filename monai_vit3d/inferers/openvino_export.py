"""Export a network as a model of OpenVINO's."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import avg_pool3d
from torch.overrides import TorchFunctionMode


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which reports every import and export to its makers."""
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO works without it
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
    import openvino

    return openvino


def export_to_openvino(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Export a network as a model of OpenVINO's for batches of any size.

    By a trace, or where that fails by ``torch.export``, which mostly takes several times as long. A trace follows one
    way through the network: one whose way depends on voxels is not traced, and a trace that holds for its own batch
    alone is not kept.

    Args:
        network: in evaluation, one tensor in, one tensor out.
        shape: of the input, ``(B, C, H, W, D)``.

    Raises:
        Exception: whatever ``torch.export`` and OpenVINO raise for what they cannot take.
    """
    example = torch.zeros((2, *shape[1:]))  # a batch of 1 would be taken for a constant
    # without autocast, whose casts would be taken for the network's
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _SteadyNorms(), _keeping_root_logger():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):  # without values: it fails where one is asked for
                network(torch.zeros_like(example))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes that become constants: they are
                trace = torch.jit.trace(network, example, check_trace=False)
            model = import_openvino().convert_model(trace, input=[-1, *shape[1:]])
            model.reshape([3, *shape[1:]])
            if model.output(0).shape[0] != 3:
                raise RuntimeError("the trace holds for its own batch alone")
            model.reshape([-1, *shape[1:]])
            return model
        except Exception:  # tracers fail in almost any way
            from torch.export import Dim  # takes a second, which a trace does without

            program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
            return import_openvino().convert_model(program)


@contextmanager
def _keeping_root_logger() -> Iterator[None]:
    """Undo what OpenVINO leaves where it cannot convert a network: nobody's warnings would be shown any more."""
    root = logging.getLogger()
    level, filters, handlers = root.level, [*root.filters], [*root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers


class _SteadyNorms(TorchFunctionMode):
    """While a network is exported, instance norms are :func:`_instance_norm`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or the other norm in its place."""
        if func is torch.nn.functional.instance_norm:
            return _instance_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Average up to 8 neighbours along each axis, then these means: OpenVINO loses digits in one sum of many voxels.

    Sides without a divisor up to 8 are summed as they are.
    """
    if not use_input_stats or x.dim() != 5:
        norm = torch.nn.functional.instance_norm
        return norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    kernel = [max(n for n in range(1, 9) if int(size) % n == 0) for size in x.shape[2:]]

    def average(values: Tensor) -> Tensor:
        return avg_pool3d(values, kernel).mean((2, 3, 4), keepdim=True)

    x = x - average(x)
    x = x / torch.sqrt(average(x * x) + eps)
    shape = (-1, 1, 1, 1)
    return x if weight is None or bias is None else x * weight.reshape(shape) + bias.reshape(shape)
