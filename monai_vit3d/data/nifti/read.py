"""The strict door: a NIfTI file comes in whole, checked and as float32, or is refused with a reason."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..volume import Array, Grid, Volume
from .file_bytes import Stream, open_stream, refusal
from .geometry import read_geometry
from .header import NiftiHeader, parse_header, read_head
from .voxels import to_float32

MAX_VOXELS = 2**30


def read_volume(
    path: str | Path,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    exact: bool = False,
    hashed: bool = False,
) -> Volume:
    """Read one 3D image; every byte of the file is read, and a gzip's checksums are verified.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file, NIfTI-1 or NIfTI-2.
        volume: which one of a 4D file, from 0.
        max_voxels: larger images are refused.
        exact: refuse voxels that would be repaired (NaN, infinite ones, values beyond float32), as for labels.
        hashed: whether to give the file's SHA-256, too, taken from the very bytes that were read.

    Returns:
        finite float32 voxels (H, W, D), where they lie, and a sentence for each oddity of the file.

    Raises:
        ImageError: the file is no such image, or damaged.

    Example:
        >>> t1 = read_volume("t1.nii.gz")  # doctest: +SKIP
        >>> t1.voxels.shape, t1.grid.spacing_mm, t1.warnings  # doctest: +SKIP
    """
    with any_bits(), open_stream(path, hashed) as stream:
        header = _checked_header(stream, volume, max_voxels)
        grid, geometry_warnings = read_geometry(header, stream.path)
        try:
            voxels, voxel_warnings = read_voxels(stream, header, exact)
        except MemoryError as error:
            found = f"shape {header.shape} does not fit into memory"
            raise refusal(stream.path, found, "Free memory, or take a machine with more.") from error
        sha256 = stream.sha256()
    warnings = (*stream.warnings, *header.warnings, *geometry_warnings, *voxel_warnings)
    return Volume(stream.path, voxels, grid, warnings, sha256)


def read_grid(path: str | Path, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> Grid:
    """Where an image lies, from its header alone; voxels are neither read nor checked.

    Args:
        path: as in :func:`read_volume`.
        volume: which one of a 4D file, from 0.
        max_voxels: larger images are refused.

    Raises:
        ImageError: as :func:`read_volume`, so far as header and file size tell.
    """
    with any_bits(), open_stream(path) as stream:
        header = _checked_header(stream, volume, max_voxels)
        return read_geometry(header, stream.path)[0]


def any_bits() -> np.errstate:
    """No word of numpy's on a signalling NaN or a product beyond float64 in a file: what comes of it is checked."""
    return np.errstate(over="ignore", invalid="ignore", under="ignore")


def check_count(shape: tuple[int, ...], max_voxels: int, path: str | Path) -> None:
    """Refuse more voxels than are wanted, before memory is asked for.

    Raises:
        ImageError: more than ``max_voxels``.
    """
    count = math.prod(shape)
    if count > max_voxels:
        found = f"shape {shape}, {count} voxels; at most max_voxels={max_voxels} are read"
        raise refusal(path, found, "If the shape is right, pass a larger max_voxels.")


def read_voxels(stream: Stream, header: NiftiHeader, exact: bool = False) -> tuple[Array, list[str]]:
    """Read what a header declares, to the end of the file: float32 (H, W, D), and a sentence for each oddity."""
    block = stream.block(header.start, math.prod(header.shape) * header.dtype.itemsize, header.end)
    raw = np.ndarray(header.shape, header.dtype, buffer=block.data, order="F")
    return to_float32(raw, header.slope, header.inter, stream.path, exact)


def _checked_header(stream: Stream, volume: int | None, max_voxels: int) -> NiftiHeader:
    header = parse_header(read_head(stream.read), stream.path, volume)
    check_count(header.shape, max_voxels, stream.path)
    stream.check_size(header.end)
    return header
