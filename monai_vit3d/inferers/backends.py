"""Run a network by another engine, OpenVINO or torch.compile, where it applies, and by PyTorch where not."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import cache_folder as cache_folder  # configs find it here
from monai_vit3d.layers.rope import mm_positions

from .engines import ENGINES, Engine, resolve_backend

logger = logging.getLogger(__name__)

MAX_ENGINES = 4  # that a network keeps: shapes of the input times precisions
# largest root mean square difference to PyTorch's output, relative to its spread, with which an engine is used
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class BackendNetwork(nn.Module):
    """Run a network in evaluation by OpenVINO or ``torch.compile``; it is called as before.

    An engine is built for each shape of input when it first comes, and is used only if its output for noise of that
    shape is PyTorch's within ``TOLERANCE``. A model that is kept on disk remembers that it was compared on this
    processor, so that the next process need not repeat it. Under ``torch.autocast`` the engine computes in bfloat16.
    PyTorch itself runs the network in training mode, with gradients on, for float64 or half precision, and on other
    devices than the CPU (``compile`` runs on all). An engine holds a copy of the weights: it is built anew after they
    are loaded or trained on; only changes through ``.data`` are not noticed.

    Args:
        network: one tensor in, one tensor out.
        backend: ``"openvino"`` (CPU; the ``cpu`` extra), ``"compile"`` (``torch.compile``, weights
            frozen; the first call takes tens of seconds), ``"torch"``, or ``"auto"``: OpenVINO if it is installed
            and can run the network, else PyTorch.
        cache_dir: folder for OpenVINO's models, of which the last used few are kept, named by the SHA-256 of what they
            were made from; None keeps none. :func:`cache_folder` is the command's.

    Attributes:
        refusal: why PyTorch runs the network, where an engine was tried and cannot; "" elsewhere.

    Raises:
        UsageError: an unknown backend; unless it is ``"auto"``, one that is not installed, or a network with rotary
            positions in mm, whose spacing an engine would keep from one image to the next.

    Example:
        >>> network = BackendNetwork(load_weights(network, "model.pt").eval(), "openvino")
        >>> labels = SlidingWindowInferer((96, 96, 96))(ct, network).argmax(1)
    """

    def __init__(self, network: nn.Module, backend: str = "auto", cache_dir: str | Path | None = None) -> None:
        super().__init__()
        self.training = network.training
        self.network, self.cache_dir, self.is_strict = network, cache_dir, backend != "auto"
        self.backend, refusal = resolve_backend(backend), ""
        if self.backend != "torch" and mm_positions(network):
            if self.is_strict:
                raise UsageError(f"backend={backend!r}: rotary positions in mm change with the image. Use 'torch'.")
            self.backend, refusal = "torch", "its rotary positions in mm change with the image"
        self._engines: dict[tuple[Any, ...], Engine | None] = {}
        self.refusal = refusal
        self._weight_versions: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        """Run the network on ``x``; the output of an engine is float32.

        Raises:
            UsageError: the backend was named, not ``"auto"``, and cannot run this network.
        """
        engine = self.engine(tuple(x.shape), x.device, x.dtype)
        if engine is None:
            return self.network(x)
        if not isinstance(x, MetaTensor):
            return engine(x)
        return MetaTensor(engine(x.as_tensor())).copy_meta_from(x, copy_attr=not x.is_batch)  # as MONAI's do

    def engine(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Engine | None:
        """Return the engine for inputs of a shape, built if needed; None if PyTorch runs the network itself.

        Args:
            shape: ``(B, C, H, W, D)``.
            device: the inputs'.
            dtype: the inputs'.

        Raises:
            UsageError: as :meth:`forward`.
        """
        autocast = torch.is_autocast_enabled(device.type)
        precision = torch.get_autocast_dtype(device.type) if autocast else dtype
        if not self._applies(device, dtype) or precision not in TOLERANCE:
            return None
        tensors = [*self.network.parameters(), *self.network.buffers()]
        versions = [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if versions != self._weight_versions:
            self._engines, self._weight_versions = {}, versions
        key = (shape, device, precision)
        if key not in self._engines:
            while len(self._engines) >= MAX_ENGINES:
                self._engines.pop(next(iter(self._engines)))
            self._engines[key] = self._build(shape, device, precision)
        if self._engines[key] is None and self.is_strict:
            raise UsageError(f"backend={self.backend!r} cannot run this network: {self.refusal}. Use 'torch'.")
        return self._engines[key]

    def _applies(self, device: torch.device, dtype: torch.dtype) -> bool:
        if self.backend == "torch" or dtype != torch.float32:
            return False
        if ENGINES[self.backend].cpu_only and device.type != "cpu":
            return False
        is_training = torch.is_grad_enabled() or any(m.training for m in self.network.modules())
        return not (is_training or torch.jit.is_tracing())

    def _build(self, shape: tuple[int, ...], device: torch.device, precision: torch.dtype) -> Engine | None:
        """Build an engine and compare its output with PyTorch's; None if it cannot be used."""
        # noise: of constant input, a norm may leave nothing but rounding errors
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            engine, compared_file = ENGINES[self.backend].build(self.network, shape, precision, self.cache_dir)
            if compared_file is not None and compared_file.exists():
                return engine
            output = engine(noise)
        except Exception as failure:  # exporters fail in almost any way
            self.refusal = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
            self.network(noise)  # a network that cannot run at all raises its own error
        else:
            expected = self.network(noise)
            error = _relative_error(output, expected) if output.shape == expected.shape else math.inf
            if error <= TOLERANCE[precision]:
                if compared_file is not None:
                    with suppress(OSError):
                        compared_file.touch()
                return engine
            self.refusal = f"its answer differs from PyTorch's by {error:.2g} of the spread"
        if not self.is_strict:
            logger.warning("%s cannot run this network (%s); PyTorch runs it", self.backend, self.refusal)
        return None


def _relative_error(output: Tensor, expected: Tensor) -> float:
    """Root mean square difference, over the output's spread plus a hundredth of its size (it may be constant)."""
    output, expected = output.double(), expected.double()
    size = expected.square().mean().sqrt()
    spread = (expected - expected.mean()).square().mean().sqrt() + size / 100
    return float((output - expected).square().mean().sqrt() / spread.clamp(min=1e-12))
