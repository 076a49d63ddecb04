"""FreeSurfer's .mgh and .mgz (https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat), as strictly as NIfTI."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .nifti.file_bytes import AGAIN, Stream, open_stream, refusal
from .nifti.geometry import check_affine, oddities
from .nifti.header import check_volume_index
from .nifti.read import MAX_VOXELS, any_bits, check_count
from .nifti.voxels import to_float32
from .readers import READERS
from .volume import Array, Grid, Volume

(_SUFFIXES,) = (reader.suffixes for reader in READERS if reader.module == "freesurfer")
_HEADER = struct.Struct(">7ih15f")  # big-endian always; the voxels begin at byte 284
_START = 284
_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


@dataclass(frozen=True, eq=False)
class _Header:
    """What a header declares: bytes from ``start`` on are the voxels of the volume that was asked for."""

    grid: Grid
    dtype: np.dtype[Any]
    start: int
    end: int
    warnings: tuple[str, ...]


def read_volume(
    path: str | Path,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    exact: bool = False,
    hashed: bool = False,
) -> Volume:
    """Read one volume; arguments, result and errors as of ``data.read_volume``."""
    with any_bits(), open_stream(path, hashed, _SUFFIXES) as stream:
        header = _parse(stream, volume, max_voxels)
        shape = header.grid.shape
        # tags with the scan's parameters follow the voxels
        block = stream.block(header.start, math.prod(shape) * header.dtype.itemsize, header.end, footer=True)
        raw = np.ndarray(shape, header.dtype, buffer=block.data, order="F")
        voxels, warnings = to_float32(raw, 1.0, 0.0, stream.path, exact)
        sha256 = stream.sha256()
    return Volume(stream.path, voxels, header.grid, (*stream.warnings, *header.warnings, *warnings), sha256)


def read_grid(path: str | Path, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> Grid:
    """Read where the image lies; arguments and errors as of ``data.read_grid``."""
    with any_bits(), open_stream(path, suffixes=_SUFFIXES) as stream:
        return _parse(stream, volume, max_voxels).grid


def _parse(stream: Stream, volume: int | None, max_voxels: int) -> _Header:
    head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise refusal(stream.path, f"truncated: {len(head)} bytes; the header alone takes {_START}", AGAIN)
    version, *dims, kind, _, has_place = _HEADER.unpack(head)[:8]
    if version != 1:
        raise refusal(stream.path, f"not FreeSurfer's format: version {version}; 1 is needed", AGAIN)
    if min(dims) < 1:
        raise refusal(stream.path, f"shape {tuple(dims)}; every side needs a voxel", AGAIN)
    if kind not in _TYPES:
        known = "uint8, int16, uint16, int32 or float32 is needed"
        raise refusal(stream.path, f"voxel type {kind}; {known}", "Convert it with mri_convert -odt float.")
    h, w, d, volumes = dims
    shape = (h, w, d)
    if shape.count(1) > 1:
        raise refusal(stream.path, f"shape {shape}: values on a surface; one 3D volume is needed", "Give the volume.")
    check_count(shape, max_voxels, stream.path)
    index = check_volume_index(volume, volumes, shape, stream.path)
    dtype = np.dtype(_TYPES[kind])
    length = math.prod(shape) * dtype.itemsize
    affine, warnings = _affine(np.array(_HEADER.unpack(head)[8:]), shape, bool(has_place))
    check_affine(affine, stream.path)
    grid = Grid(shape, affine)
    end = _START + volumes * length
    stream.check_size(end)
    return _Header(grid, dtype, _START + index * length, end, (*warnings, *oddities(grid)))


def _affine(numbers: Array, shape: tuple[int, int, int], has_place: bool) -> tuple[Array, list[str]]:
    """From spacing, the directions of the three axes, and the centre of the volume, RAS+ mm."""
    spacing, axes, centre = numbers[:3], numbers[3:12].reshape(3, 3).T, numbers[12:15]
    warnings = []
    if not has_place:
        warnings.append("no position in its header: FreeSurfer's default, coronal slices of 1 mm, was taken")
        spacing, axes, centre = np.ones(3), np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2)
    return affine, warnings
