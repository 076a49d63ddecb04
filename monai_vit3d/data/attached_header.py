"""Images of a text header and the voxels behind it, raw or compressed: what NRRD and MetaImage have in common."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .nifti.file_bytes import AGAIN, check_file, refusal, reworded
from .nifti.geometry import check_affine, oddities
from .nifti.read import any_bits, check_count
from .nifti.voxels import to_float32
from .volume import Array, Grid, Volume

HEADER_LIMIT = 2**20  # bytes


@dataclass(frozen=True, eq=False)
class AttachedHeader:
    """What a text header declares.

    Args:
        shape: voxels along the three axes.
        dtype: of a stored voxel, with byte order.
        affine_mm: (4, 4), RAS+ mm.
        start: byte at which the voxels begin.
        wbits: for ``zlib``, of compressed voxels; None of raw ones.
        warnings: what was odd, a sentence each.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    affine_mm: Array
    start: int
    wbits: int | None
    warnings: tuple[str, ...] = ()


Parser = Callable[[bytes, Path], AttachedHeader]


def read_attached(
    parse: Parser, path: str | Path, volume: int | None, max_voxels: int, exact: bool = False, hashed: bool = False
) -> Volume:
    """Read one volume; other arguments, result and errors as of ``data.read_volume``.

    Args:
        parse: reads the header, from the first bytes of the file and its path, which is for messages.
    """
    path = Path(path)
    with any_bits(), reworded(path):
        check_file(path)
        content = path.read_bytes()
        header, grid = _checked(parse, content[:HEADER_LIMIT], path, volume, max_voxels)
        count = math.prod(header.shape) * header.dtype.itemsize
        stored, after = _inflated(content, header, count, path)
        raw = np.ndarray(header.shape, header.dtype, buffer=stored, order="F")
        voxels, warnings = to_float32(raw, 1.0, 0.0, path, exact)
    rest = [f"{after} bytes after the voxels were passed over"] if after else []
    sha256 = (hashlib.sha256(content).hexdigest(),) if hashed else ()
    return Volume(path, voxels, grid, (*rest, *header.warnings, *oddities(grid), *warnings), sha256)


def read_attached_grid(parse: Parser, path: str | Path, volume: int | None, max_voxels: int) -> Grid:
    """Read where the image lies; other arguments and errors as of ``data.read_grid``."""
    path = Path(path)
    with any_bits(), reworded(path):
        check_file(path)
        with path.open("rb") as file:
            return _checked(parse, file.read(HEADER_LIMIT), path, volume, max_voxels)[1]


def parse_numbers(text: str, count: int, what: str, path: Path) -> list[float]:
    """So many finite numbers of a field.

    Raises:
        ImageError: others.
    """
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise refusal(path, f"{what} '{text[:60]}'; {count} numbers are needed", AGAIN)
    return values


def _checked(
    parse: Parser, head: bytes, path: Path, volume: int | None, max_voxels: int
) -> tuple[AttachedHeader, Grid]:
    if volume:
        raise refusal(path, f"volume {volume}; the file holds one", "Leave out --volume.")
    header = parse(head, path)
    if min(header.shape) < 1:
        raise refusal(path, f"shape {header.shape}; every side needs a voxel", AGAIN)
    check_count(header.shape, max_voxels, path)
    check_affine(header.affine_mm, path)
    return header, Grid(header.shape, header.affine_mm)


def _inflated(content: bytes, header: AttachedHeader, count: int, path: Path) -> tuple[Any, int]:
    """The voxels' bytes, checksums verified, and how many bytes follow them."""
    packed = memoryview(content)[header.start :]
    if header.wbits is None:
        if len(packed) < count:
            raise refusal(path, f"truncated: {len(packed)} bytes of voxels; its header declares {count}", AGAIN)
        return packed[:count], len(packed) - count
    inflater = zlib.decompressobj(header.wbits)
    try:
        stored = inflater.decompress(packed, count + 1)
    except zlib.error as error:
        raise refusal(path, f"the compressed voxels are damaged ({error})", AGAIN) from error
    # a stream is checked at its end alone
    if len(stored) != count or not inflater.eof:
        found = f"the compressed voxels are cut off, or not the {count} bytes that the header declares"
        raise refusal(path, found, AGAIN)
    return stored, len(inflater.unused_data)
