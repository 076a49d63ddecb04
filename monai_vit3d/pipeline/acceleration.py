"""How a bundle's network is run by the command: on which engine, in which precision."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ..inferers import AutocastInferer, BackendNetwork, resolve_backend, unwrapped
from .bundle import Bundle


def accelerated(bundle: Bundle, backend: str = "auto", bf16: bool = False) -> Bundle:
    """The bundle with its network on another engine, or in bfloat16.

    Args:
        bundle: as it was loaded.
        backend: ``"torch"``, ``"compile"``, ``"openvino"`` (for the CPU), or ``"auto"``: OpenVINO if it is installed
            and the bundle runs on the CPU.
        bf16: whether the network computes in bfloat16, whatever the bundle says; False leaves it to the bundle.

    Raises:
        UsageError: an unknown backend, or one that is not installed.
    """
    name = resolve_backend(backend)
    if name == "openvino" and backend == "auto" and bundle.device.type != "cpu":
        name = "torch"
    if name != "torch":
        network = BackendNetwork(bundle.network, name if backend != "auto" else "auto", cache_folder())
        said = f"{name} {version('openvino' if name == 'openvino' else 'torch')}"
        bundle = replace(bundle, network=network.eval(), backend=said)
    return replace(bundle, inferer=AutocastInferer(unwrapped(bundle.inferer)), bf16=True) if bf16 else bundle


def cache_folder() -> Path:
    """Where exported models are kept: ``$XDG_CACHE_HOME/monai_vit3d``, by default ``~/.cache/monai_vit3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_vit3d"
