"""Read one image file of any format: its header by the format's own parser, then its voxels, in one way for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.data.limits import MAX_VOXELS
from monai_vit3d.data.volume import Array, Grid, Volume

from .file_bytes import Stream, open_stream, refusal
from .geometry import check_affine, oddities
from .voxels import to_float32


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """What the header of an image declares, whatever its format.

    Args:
        grid: shape and affine.
        dtype: of a stored voxel, with byte order.
        start: byte at which the voxels of this volume begin.
        end: byte at which the voxels of the whole file end; not read if ``wbits`` is set.
        slope: of the stored values.
        inter: added to slope times value.
        wbits: for ``zlib``, if the voxels behind a plain header are compressed; else None.
        has_footer: whether the format has more behind the voxels, so that bytes there are not worth a warning.
        warnings: a sentence for each oddity.
        sha256: of the file of the header, if it is another one and was hashed.
    """

    grid: Grid
    dtype: np.dtype[Any]
    start: int
    end: int
    slope: float = 1.0
    inter: float = 0.0
    wbits: int | None = None
    has_footer: bool = False
    warnings: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Bytes of this volume's voxels."""
        return math.prod(self.grid.shape) * self.dtype.itemsize

    @property
    def volumes(self) -> int:
        """Volumes from this one to the end of the file."""
        return 1 if self.wbits is not None else (self.end - self.start) // self.length


ParseHeader = Callable[[Stream, int | None], ImageHeader]


def read_image(
    parse: ParseHeader,
    suffixes: tuple[str, ...],
    path: str | Path,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    exact: bool = False,
    hashed: bool = False,
) -> Volume:
    """Read one volume of a file by its format's header parser; result and errors are those of ``data.read_volume``.

    Args:
        parse: reads the header from the beginning of the stream, for the volume of the given number.
        suffixes: that the file's name may have, lower-case.
        path: of the file.
        volume: as for ``data.read_volume``, and so are the others.
        max_voxels: largest number of voxels that is read.
        exact: refuse voxels that float32 would round.
        hashed: take the SHA-256 of the file's bytes in the same reading.
    """
    with ignoring_float_errors(), open_stream(path, hashed, suffixes) as stream:
        header = _checked_header(parse, stream, volume, max_voxels)
        return _read(stream, header, 1, exact)[0]


def read_all_volumes(
    parse: ParseHeader,
    suffixes: tuple[str, ...],
    path: str | Path,
    max_voxels: int = MAX_VOXELS,
    exact: bool = False,
    hashed: bool = False,
) -> list[Volume]:
    """Read every volume of a file in one reading; arguments and errors as of :func:`read_image`.

    Returns:
        A volume each, of one grid; the first has the warnings about the file as a whole, and its SHA-256.
    """
    with ignoring_float_errors(), open_stream(path, hashed, suffixes) as stream:
        header = _checked_header(parse, stream, 0, max_voxels)
        return _read(stream, header, header.volumes, exact)


def _read(stream: Stream, header: ImageHeader, count: int, exact: bool) -> list[Volume]:
    """Read the volume of a header, or it and those behind it, and the rest of the file."""
    try:
        parts = _read_voxels(stream, header, count, exact)
    except MemoryError as error:
        problem = f"shape {header.grid.shape}{f' of {count} volumes' if count > 1 else ''} does not fit into memory"
        raise refusal(stream.path, problem, "Free memory, or take a machine with more.") from error
    of_file = (*stream.warnings, *header.warnings, *oddities(header.grid))
    sha256 = header.sha256 + stream.sha256()
    volumes = []
    for index, (voxels, warnings) in enumerate(parts):
        texts = warnings if count == 1 else [f"volume {index}: {text}" for text in warnings]
        first = index == 0
        volumes.append(
            Volume(stream.path, voxels, header.grid, (*(of_file if first else ()), *texts), sha256 if first else ())
        )
    return volumes


def count_image_volumes(parse: ParseHeader, suffixes: tuple[str, ...], path: str | Path) -> int:
    """Count the volumes of a file by its header; errors as of :func:`read_image`."""
    with ignoring_float_errors(), open_stream(path, suffixes=suffixes) as stream:
        return parse(stream, 0).volumes


def read_image_grid(
    parse: ParseHeader,
    suffixes: tuple[str, ...],
    path: str | Path,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Grid:
    """Read where a volume lies; arguments as of :func:`read_image`, errors as of ``data.read_grid``."""
    with ignoring_float_errors(), open_stream(path, suffixes=suffixes) as stream:
        return _checked_header(parse, stream, volume, max_voxels).grid


def ignoring_float_errors() -> np.errstate:
    """Silence numpy about signalling NaN and overflow in a file's numbers: the results are checked."""
    return np.errstate(over="ignore", invalid="ignore", under="ignore")


def _checked_header(parse: ParseHeader, stream: Stream, volume: int | None, max_voxels: int) -> ImageHeader:
    """Parse the header, and check its claims before any memory is allocated."""
    header = parse(stream, volume)
    shape, count = header.grid.shape, math.prod(header.grid.shape)
    if count > max_voxels:
        problem = f"shape {shape}, {count} voxels; at most max_voxels={max_voxels} are read"
        raise refusal(stream.path, problem, "If the shape is right, pass a larger max_voxels.")
    check_affine(header.grid.affine_mm, stream.path)
    if header.wbits is None:
        stream.check_size(header.end)
    return header


def _read_voxels(stream: Stream, header: ImageHeader, count: int, exact: bool) -> list[tuple[Array, list[str]]]:
    """Read to the end of the file: of each volume voxels (H, W, D) float32, and a sentence for each oddity."""
    if header.wbits is None:
        stored: Any = stream.block(header.start, count * header.length, header.end, header.has_footer)
    else:
        stored = stream.inflated(header.start, header.length, header.wbits)
    shape, offsets = header.grid.shape, range(0, count * header.length, header.length)
    raw = [np.ndarray(shape, header.dtype, buffer=stored, offset=offset, order="F") for offset in offsets]
    return [to_float32(part, header.slope, header.inter, stream.path, exact) for part in raw]
