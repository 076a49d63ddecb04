"""A network run by another engine: OpenVINO or torch.compile where they apply, PyTorch itself where they do not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.errors import UsageError
from ..layers import RotaryPositions3D

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "compile", "openvino")
MAX_SHAPES = 4  # of inputs, for which engines are made: each takes seconds
# root mean square of the difference to PyTorch's answer, over the answer's spread, above which an engine is not used
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class _Key(NamedTuple):
    """What an engine was made for: weights are baked into it, so their versions count."""

    shape: tuple[int, ...]
    precision: torch.dtype
    versions: int


class BackendNetwork(nn.Module):
    """A network in evaluation, run by OpenVINO or ``torch.compile`` without a change in how it is called.

    An engine is made for each shape of input when it first comes, and only used if its answer to that input is
    PyTorch's own. Under ``torch.autocast`` it computes in bfloat16. PyTorch runs the network itself wherever an
    engine does not apply: in training mode or with gradients on, on another device or dtype, after
    ``MAX_SHAPES`` shapes, and with rotary positions in mm, whose spacing changes from image to image.

    Args:
        network: one tensor in, one tensor out.
        backend: ``"openvino"`` (CPU; ``pip install monai-vit3d[cpu]``), ``"compile"`` (``torch.compile``, weights
            frozen; the first call takes tens of seconds), ``"torch"``, or ``"auto"``: OpenVINO if it is installed
            and the input lies on the CPU.
        cache_dir: where OpenVINO's models are kept, under their own SHA-256; None keeps none.

    Raises:
        UsageError: an unknown backend; OpenVINO asked for and not installed.

    Example:
        >>> network = BackendNetwork(load_weights(network, "model.pt").eval(), "openvino")
        >>> labels = SlidingWindowInferer((96, 96, 96))(ct, network).argmax(1)
    """

    def __init__(self, network: nn.Module, backend: str = "auto", cache_dir: str | Path | None = None) -> None:
        super().__init__()
        self.network, self.cache_dir = network, cache_dir
        self.backend = resolve_backend(backend)
        self.strict = backend != "auto"
        self._engines: dict[_Key, Callable[[Tensor], Tensor]] = {}
        # an export would keep the spacing of the image that it was made with
        self._fixed = not any(isinstance(m, RotaryPositions3D) and m.unit == "mm" for m in network.modules())
        self.train(network.training)

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives for ``x``, in float32 where an engine computed it.

        Raises:
            UsageError: the backend was asked for by name, and cannot run this network.
        """
        precision = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        if not self._applies(x, precision):
            return self.network(x)
        versions = sum(tensor._version for tensor in (*self.network.parameters(), *self.network.buffers()))
        key = _Key(tuple(x.shape), precision, versions)
        if key not in self._engines:
            if len(self._engines) >= MAX_SHAPES:
                return self.network(x)
            self._engines[key] = self._build(x, precision)
        return self._engines[key](x)

    def _applies(self, x: Tensor, precision: torch.dtype) -> bool:
        here = x.device.type == "cpu" or self.backend == "compile"
        plain = self.backend == "torch" or self.training or torch.is_grad_enabled() or torch.jit.is_tracing()
        return here and self._fixed and not plain and x.dtype == torch.float32 and precision in TOLERANCE

    def _build(self, x: Tensor, precision: torch.dtype) -> Callable[[Tensor], Tensor]:
        """An engine that was seen to give PyTorch's answer; the network itself if there is none."""
        try:
            engine = _compiled(self.network) if self.backend == "compile" else self._openvino(x, precision)
            error = _difference(engine(x), self.network(x))
        except Exception as failure:  # exporters fail in almost any way
            error, reason = float("inf"), f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        else:
            reason = f"its answer differs from PyTorch's by {error:.2g} of the spread, {TOLERANCE[precision]:.2g} is allowed"
        if error <= TOLERANCE[precision]:
            return engine
        if self.strict:
            raise UsageError(f"backend={self.backend!r} cannot run this network: {reason}. Use backend='torch'.")
        logger.warning("%s cannot run this network (%s); PyTorch runs it", self.backend, reason)
        return self.network

    def _openvino(self, x: Tensor, precision: torch.dtype) -> Callable[[Tensor], Tensor]:
        from .openvino import OpenVINOEngine

        return OpenVINOEngine(self.network, x.shape, precision, self.cache_dir)


def resolve_backend(backend: str) -> str:
    """The backend that a name stands for on this machine.

    Args:
        backend: one of ``BACKENDS``.

    Raises:
        UsageError: unknown, or not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r}; one of {', '.join(map(repr, BACKENDS))} is needed.")
    if backend not in ("auto", "openvino"):
        return backend
    with suppress(PackageNotFoundError):
        version("openvino")
        return "openvino"
    if backend == "openvino":
        raise UsageError("backend='openvino': OpenVINO is not installed. pip install monai-vit3d[cpu], or use 'torch'.")
    return "torch"


def _compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    run: Any = torch.compile(network, options={"freezing": True})
    # windows come as views with other strides each: each would be compiled anew
    return lambda x: run(x.contiguous()).clone()


def _difference(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, over the answer's spread; an answer that is constant has a hundredth of it."""
    found, expected = found.double(), expected.double()
    size = expected.square().mean().sqrt()
    spread = (expected - expected.mean()).square().mean().sqrt() + size / 100
    return float((found - expected).square().mean().sqrt() / spread.clamp(min=1e-12))
