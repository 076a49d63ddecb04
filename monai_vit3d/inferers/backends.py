"""A network run by another engine: OpenVINO or torch.compile where they apply, PyTorch itself where they do not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from ..data.errors import UsageError
from ..layers.rope import mm_positions

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "auto", "compile", "openvino")
MAX_ENGINES = 4  # that are kept: shapes of the input times precisions
# root mean square of the difference to PyTorch's answer, over the answer's spread, above which an engine is not used
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}

Engine = Callable[[Tensor], Tensor]


class BackendNetwork(nn.Module):
    """A network in evaluation, run by OpenVINO or ``torch.compile`` without a change in how it is called.

    An engine is made for each shape of input when it first comes, and only used if its answer to noise of that shape
    is PyTorch's within ``TOLERANCE``; beside a model that is kept stands what was compared on this processor, so that
    the next process need not. Under ``torch.autocast`` it computes in bfloat16. PyTorch runs the network
    itself where an engine does not apply: in training mode, with gradients on, for float64 or half precision, and on
    other devices than the CPU (``compile`` runs on all). An engine holds a copy of the weights: it is made anew when
    they are loaded or trained on; only changes through ``.data`` are not seen.

    Args:
        network: one tensor in, one tensor out.
        backend: ``"openvino"`` (CPU; ``pip install monai-vit3d[cpu]``), ``"compile"`` (``torch.compile``, weights
            frozen; the first call takes tens of seconds), ``"torch"``, or ``"auto"``: OpenVINO if it is installed
            and can run the network, else PyTorch.
        cache_dir: where OpenVINO's models are kept, the last used few, under the SHA-256 of what they were made from;
            None keeps none. :func:`cache_folder` is the command's.

    Raises:
        UsageError: an unknown backend; by name, one that is not installed, or a network with rotary positions in mm,
            whose spacing an engine would keep from one image to the next.

    Example:
        >>> network = BackendNetwork(load_weights(network, "model.pt").eval(), "openvino")
        >>> labels = SlidingWindowInferer((96, 96, 96))(ct, network).argmax(1)
    """

    def __init__(self, network: nn.Module, backend: str = "auto", cache_dir: str | Path | None = None) -> None:
        super().__init__()
        self.training = network.training
        self.network, self.cache_dir, self.strict = network, cache_dir, backend != "auto"
        self.backend = resolve_backend(backend)
        if self.backend != "torch" and mm_positions(network):
            if self.strict:
                raise UsageError(f"backend={backend!r}: rotary positions in mm change with the image. Use 'torch'.")
            self.backend = "torch"
        self._engines: dict[tuple[Any, ...], Engine | None] = {}
        self._refused = ""
        self._weights: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives for ``x``, in float32 where an engine computed it.

        Raises:
            UsageError: the backend was asked for by name, and cannot run this network.
        """
        engine = self.engine(tuple(x.shape), x.device, x.dtype)
        if engine is None:
            return self.network(x)
        if not isinstance(x, MetaTensor):
            return engine(x)
        return MetaTensor(engine(x.as_tensor())).copy_meta_from(x, copy_attr=not x.is_batch)  # as MONAI's do

    def engine(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Engine | None:
        """The engine for inputs of a shape, made if it is not there; None where PyTorch runs the network itself.

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
        weights = [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        if weights != self._weights:
            self._engines, self._weights = {}, weights
        key = (shape, device, precision)
        if key not in self._engines:
            while len(self._engines) >= MAX_ENGINES:
                self._engines.pop(next(iter(self._engines)))
            self._engines[key] = self._build(shape, device, precision)
        if self._engines[key] is None and self.strict:
            raise UsageError(f"backend={self.backend!r} cannot run this network: {self._refused}. Use 'torch'.")
        return self._engines[key]

    def _applies(self, device: torch.device, dtype: torch.dtype) -> bool:
        here = device.type == "cpu" or self.backend == "compile"
        if self.backend == "torch" or not here or dtype != torch.float32:
            return False
        live = torch.is_grad_enabled() or torch.jit.is_tracing() or any(m.training for m in self.network.modules())
        return not live

    def _build(self, shape: tuple[int, ...], device: torch.device, precision: torch.dtype) -> Engine | None:
        """An engine that was seen to give PyTorch's answer to noise: of air a norm may leave nothing but rounding."""
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            engine, mark = self._made(shape, precision)
            if mark is not None and mark.exists():
                return engine
            found = engine(noise)
        except Exception as failure:  # exporters fail in almost any way
            self._refused = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
            self.network(noise)  # what cannot run at all says so itself
        else:
            error = _difference(found, self.network(noise))
            if error <= TOLERANCE[precision]:
                if mark is not None:
                    with suppress(OSError):
                        mark.touch()
                return engine
            self._refused = f"its answer differs from PyTorch's by {error:.2g} of the spread"
        if not self.strict:
            logger.warning("%s cannot run this network (%s); PyTorch runs it", self.backend, self._refused)
        return None

    def _made(self, shape: tuple[int, ...], precision: torch.dtype) -> tuple[Engine, Path | None]:
        """An engine, and the file that is there if its answer was compared before."""
        if self.backend == "compile":
            return _compiled(self.network), None
        from .openvino import OpenVINOEngine

        engine = OpenVINOEngine(self.network, shape, precision, self.cache_dir)
        return engine, engine.mark


def cache_folder() -> Path:
    """Where the command and the bundles keep models: ``$XDG_CACHE_HOME/monai_vit3d``, else ``~/.cache/monai_vit3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_vit3d"


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


def _compiled(network: nn.Module) -> Engine:
    run: Any = torch.compile(network, options={"freezing": True})
    # windows come as views with other strides each: each would be compiled anew
    return lambda x: run(x.contiguous()).clone()


def _difference(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, over the answer's spread and a hundredth of its size (it may be constant)."""
    found, expected = found.double(), expected.double()
    size = expected.square().mean().sqrt()
    spread = (expected - expected.mean()).square().mean().sqrt() + size / 100
    return float((found - expected).square().mean().sqrt() / spread.clamp(min=1e-12))
