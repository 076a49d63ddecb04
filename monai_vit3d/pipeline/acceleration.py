"""Run a bundle's network on another engine or in another precision."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep

from monai_vit3d.bundle.load import Bundle
from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import (
    AtlasInferer,
    AutocastInferer,
    BackendNetwork,
    HeadInferer,
    computes_in_bfloat16,
    resolve_backend,
    unwrap_inferer,
)
from monai_vit3d.inferers.backends import TOLERANCE, cache_folder
from monai_vit3d.inferers.spacing import inferer_wrappers

logger = logging.getLogger(__name__)

AROUND_WINDOWS = (HeadInferer, AtlasInferer)  # inferers whose ``inferer`` runs the network


def accelerate(bundle: Bundle, backend: str = "auto", bf16: bool = False) -> Bundle:
    """Put a bundle's network on another engine, or into bfloat16.

    OpenVINO's engine is made and checked here, before the first image, and runs one window at a time: the answer is
    the same, and what one window leaves between two layers stays in the processor's cache more often.

    Args:
        bundle: as it was loaded.
        backend: ``"torch"``, ``"compile"``, ``"openvino"`` (for the CPU), or ``"auto"``: OpenVINO if it is installed,
            the bundle runs on the CPU in windows of one size, in float32 or bfloat16, and its network gives PyTorch's
            answer there.
        bf16: whether the network computes in bfloat16, whatever the bundle says; False leaves it to the bundle.

    Returns:
        The bundle with its ``backend`` and ``backend_reason``.

    Raises:
        UsageError: an unknown backend; one that is not installed, or cannot run this network in its precision.
    """
    name = resolve_backend(backend)
    if bf16:
        bundle = replace(bundle, inferer=AutocastInferer(unwrap_inferer(bundle.inferer)), bf16=True)
    if backend == "openvino" and bundle.device.type != "cpu":
        raise UsageError(f"backend=openvino: for the CPU, the network runs on {bundle.device}. Give device=cpu.")
    obstacle = _obstacle(bundle, name) if backend == "auto" else ""
    if backend == "torch" or obstacle:
        if bf16 and not computes_in_bfloat16(bundle.device):
            logger.warning("bf16: this %s has no instructions for bfloat16; it is slower than float32", bundle.device)
        return replace(bundle, backend_reason=obstacle) if obstacle else bundle
    precision = _precision(bundle)
    if precision not in TOLERANCE:
        raise UsageError(
            f"backend={backend}: the bundle's network computes in {precision}; expected torch.float32 or "
            "torch.bfloat16. Add bf16=True, or use backend=torch."
        )
    network = BackendNetwork(bundle.network, backend, cache_folder())
    if name == "openvino" and (size := _window_size(bundle.inferer)) is not None:
        inferer = copy.deepcopy(bundle.inferer)
        _innermost(inferer).sw_batch_size = 1
        if not _is_ready(network, (1, bundle.metadata.channels, *size), precision):
            return replace(bundle, backend_reason=f"OpenVINO cannot run this network: {network.refusal}")
        bundle = replace(bundle, inferer=inferer)
    engine = f"{name} {version('openvino' if name == 'openvino' else 'torch')}"
    reason = "OpenVINO gives PyTorch's answer" if backend == "auto" else bundle.backend_reason
    return replace(bundle, network=network, backend=engine, backend_reason=reason)


def _obstacle(bundle: Bundle, name: str) -> str:
    """Say why backend ``"auto"``, which is ``name`` on this machine, leaves a bundle to PyTorch; "" if it does not."""
    if name == "torch":
        return "OpenVINO is not installed"
    if bundle.device.type != "cpu":
        return f"the network runs on {bundle.device}"
    if _window_size(bundle.inferer) is None:
        return "the network's input has no fixed size"
    precision = _precision(bundle)
    return "" if precision in TOLERANCE else f"the network computes in {precision}"


def _innermost(inferer: Callable[..., Any]) -> Any:
    """Return what runs the bundle's network: inside wrappers, and inside boxes in a head."""
    inner = unwrap_inferer(inferer)
    while isinstance(inner, AROUND_WINDOWS):
        inner = unwrap_inferer(inner.inferer)
    return inner


def _window_size(inferer: Callable[..., Any]) -> tuple[int, ...] | None:
    """Return the size of sliding windows; None where it depends on the image."""
    window = _innermost(inferer)
    if not isinstance(window, SlidingWindowInferer):
        return None
    size = ensure_tuple_rep(window.roi_size, 3)
    return size if all(isinstance(n, int) and n > 0 for n in size) else None


def _precision(bundle: Bundle) -> torch.dtype:
    """Return the type that the network computes in; autocast ignores a type that the device does not have."""
    kind = bundle.device.type
    reduced = [w.dtype for w in inferer_wrappers(bundle.inferer) if isinstance(w, AutocastInferer) and w.enabled]
    with torch.autocast(kind, reduced[-1] if reduced else None, enabled=bool(reduced) or bundle.autocast):
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def _is_ready(network: BackendNetwork, shape: tuple[int, ...], precision: torch.dtype) -> bool:
    """Return whether an engine runs the network; False too if the network itself fails, which each case reports."""
    cpu = torch.device("cpu")
    try:
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            return network.engine(shape, cpu) is not None
    except UsageError:
        raise
    except Exception:
        return False
