"""The engines that can run a network in place of PyTorch, a row for each."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, install_extra

Engine = Callable[[Tensor], Tensor]


class EngineKind(NamedTuple):
    """An engine.

    Attributes:
        name: what messages call it.
        build: makes one from a network in evaluation, the shape of its input, the precision and the folder of the
            cache; gives it together with the file that exists once its output was compared with PyTorch's, or None
            if nothing is kept.
        cpu_only: whether it runs on the CPU alone.
        package: that it needs.
        extra: of this package, that installs it.
        is_automatic: whether backend ``"auto"`` takes it if it is installed.
    """

    name: str
    build: Callable[[nn.Module, tuple[int, ...], torch.dtype, str | Path | None], tuple[Engine, Path | None]]
    cpu_only: bool
    package: str = "torch"
    extra: str = ""
    is_automatic: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether its package is there, without an import of it."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return False
        return True


def _build_compiled(
    network: nn.Module, shape: tuple[int, ...], precision: torch.dtype, cache_dir: str | Path | None
) -> tuple[Engine, None]:
    run: Any = torch.compile(network, options={"freezing": True})
    # windows come as views with other strides each: each would be compiled anew
    return lambda x: run(x.contiguous()).clone(), None


def _build_openvino(
    network: nn.Module, shape: tuple[int, ...], precision: torch.dtype, cache_dir: str | Path | None
) -> tuple[Engine, Path | None]:
    from .openvino import OpenVINOEngine

    engine = OpenVINOEngine(network, shape, precision, cache_dir)
    return engine, engine.compared_file


ENGINES = {
    "compile": EngineKind("torch.compile", _build_compiled, cpu_only=False),
    "openvino": EngineKind(
        "OpenVINO", _build_openvino, cpu_only=True, package="openvino", extra="cpu", is_automatic=True
    ),
}
BACKENDS = ("torch", "auto", *ENGINES)


def resolve_backend(backend: str) -> str:
    """Resolve ``"auto"`` to the backend that it means on this machine, and check any other name.

    Args:
        backend: one of ``BACKENDS``.

    Returns:
        ``"torch"`` or a key of ``ENGINES``.

    Raises:
        UsageError: unknown, or not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r}; expected one of {', '.join(map(repr, BACKENDS))}.")
    if backend == "auto":
        automatic = (key for key, kind in ENGINES.items() if kind.is_automatic and kind.is_installed)
        return next(automatic, "torch")
    if backend in ENGINES and not ENGINES[backend].is_installed:
        name, extra = ENGINES[backend].name, ENGINES[backend].extra
        raise UsageError(f"backend={backend!r}: {name} is not installed: {install_extra(extra)}, or use 'torch'.")
    return backend
