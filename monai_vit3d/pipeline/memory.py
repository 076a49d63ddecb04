"""Whether a volume fits into memory, known before the work."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.errors import ImageError
from ..data.volume import Grid, Volume

if TYPE_CHECKING:
    from .bundle import Bundle

# measured by benchmarks/memory.py: what MONAI's chain holds at its peak, per voxel
BYTES_PER_FILE_VOXEL = 20
BYTES_PER_NETWORK_VOXEL = 48


def network_voxels(grid: Grid, bundle: Bundle) -> int:
    """Voxels of the network's grid, as far as Spacingd tells; other steps only crop or pad."""
    from monai.transforms import Spacingd

    voxels = float(np.prod(grid.shape))
    for step in bundle.preprocessing:
        if isinstance(step, Spacingd):
            # positive entries only: the others keep the file's spacing
            wanted = np.ravel(step.spacing_transform.pixdim).astype(float)[:3]
            ratio = np.where(wanted > 0, np.array(grid.spacing_mm)[: len(wanted)] / np.abs(wanted), 1.0)
            return round(voxels * float(np.prod(ratio)))
    return round(voxels)


def needed_bytes(volumes: Sequence[Volume], bundle: Bundle) -> int:
    """Memory that a case needs beyond what is held already, with windows stitched band by band."""
    grid, channels = volumes[0].grid, len(volumes)
    file_voxels = int(np.prod(grid.shape))
    return channels * (BYTES_PER_FILE_VOXEL * file_voxels + BYTES_PER_NETWORK_VOXEL * network_voxels(grid, bundle))


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or less where the process or its container is limited."""
    import psutil

    free = [int(psutil.virtual_memory().available)]
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free.append(limit - int(psutil.Process().memory_info().vms))
    with contextlib.suppress(OSError, ValueError):  # "max", or no control group
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free)


def check_memory(volumes: Sequence[Volume], bundle: Bundle) -> None:
    """Refuse a case that would not fit, instead of being killed in its middle.

    Raises:
        ImageError: it would not fit.
    """
    needed, free = needed_bytes(volumes, bundle), available_bytes()
    if needed > free:
        grid = volumes[0].grid
        raise ImageError(
            f"{volumes[0].path}: {grid.shape} voxels of {tuple(round(mm, 3) for mm in grid.spacing_mm)} mm need about "
            f"{needed / 2**30:.1f} GiB for this bundle, {free / 2**30:.1f} GiB are free. Crop the image, use fewer "
            "--jobs, or a machine with more memory."
        )
