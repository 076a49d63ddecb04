"""How a bundle's network is run by the command: on which engine, in which precision."""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep

from ..data.errors import UsageError
from ..inferers import AutocastInferer, BackendNetwork, resolve_backend, unwrapped
from .bundle import Bundle

logger = logging.getLogger(__name__)


def accelerated(bundle: Bundle, backend: str = "auto", bf16: bool = False) -> Bundle:
    """The bundle with its network on another engine, or in bfloat16.

    Args:
        bundle: as it was loaded.
        backend: ``"torch"``, ``"compile"``, ``"openvino"`` (for the CPU), or ``"auto"``: OpenVINO if it is installed
            and the bundle runs on the CPU.
        bf16: whether the network computes in bfloat16, whatever the bundle says; False leaves it to the bundle.

    Raises:
        UsageError: an unknown backend, or one that is not installed or cannot run this network.
    """
    name = resolve_backend(backend)
    if name == "openvino" and backend == "auto" and bundle.device.type != "cpu":
        name = "torch"
    if bf16:
        bundle = replace(bundle, inferer=AutocastInferer(unwrapped(bundle.inferer)), bf16=True)
    if name == "torch":
        return bundle
    network = BackendNetwork(bundle.network, name if backend != "auto" else "auto", cache_folder())
    said = f"{name} {version('openvino' if name == 'openvino' else 'torch')}"
    bundle = replace(bundle, network=network.eval(), backend=said)
    return _with_engine(bundle) if name == "openvino" and bundle.device.type == "cpu" else bundle


def cache_folder() -> Path:
    """Where exported models are kept: ``$XDG_CACHE_HOME/monai_vit3d``, by default ``~/.cache/monai_vit3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_vit3d"


def _with_engine(bundle: Bundle) -> Bundle:
    """The bundle with OpenVINO's engine made, for one window at a time."""
    inferer = copy.deepcopy(bundle.inferer)
    window = unwrapped(inferer)
    if not isinstance(window, SlidingWindowInferer):
        return bundle
    # the answer is the same; what one window leaves between two layers stays in the processor's cache more often
    window.sw_batch_size = 1
    bundle = replace(bundle, inferer=inferer)
    size = ensure_tuple_rep(window.roi_size, 3)
    if all(isinstance(n, int) and n > 0 for n in size):
        _try_on_noise(bundle, size)
    return bundle


def _try_on_noise(bundle: Bundle, size: tuple[int, ...]) -> None:
    """Make and check the engine on noise: the first window may be air, of which a norm makes large rounding errors."""
    noise = torch.randn((1, bundle.metadata.channels, *size), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            bundle.inferer(noise, bundle.network)
    except UsageError:
        raise
    except Exception:  # a bundle that cannot run fails case by case, and says there why
        logger.debug("the network cannot run on noise of %s voxels", size, exc_info=True)
