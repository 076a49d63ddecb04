"""Write labels and maps on the grid of the image they were made from, without anything else of its header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.files import replacing
from monai_vit3d.data.volume import Array, Grid

from .gzip_io import gzip_writer

_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x",
    "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
_LABEL_TYPES = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64")
_MAX_NIFTI1_SIDE = 32767  # voxels along an axis
_SLAB_BYTES = 2**25  # that are written at a time: no second copy of a large volume in memory
_CACHED_LINES = 2**13  # cache lines of 64 bytes that any core keeps


def write_labels(labels: Array, grid: Grid, path: str | Path) -> None:
    """Write class numbers, or masks that may overlap, in the smallest integer type that holds them.

    The file is written atomically, and the same labels give the same bytes, compressed ones by the same gzip library.

    Args:
        labels: (H, W, D) or, for C masks, (C, H, W, D), which becomes the fourth axis (H, W, D, C) of the file.
            Integers, booleans, or floats that are whole numbers.
        grid: of the image; the header's geometry is copied from it bit for bit.
        path: ends in ``.nii`` or ``.nii.gz``; its folder is created if needed.

    Raises:
        ImageError: another shape than the grid's, values that are not whole numbers, or another suffix.
        OSError: it cannot be written; an older file of that name is still there.
    """
    labels = np.asarray(labels)
    _check(labels, grid, Path(path))
    _write(labels, label_dtype(labels, path), grid, Path(path))


def write_map(values: Array, grid: Grid, path: str | Path) -> None:
    """Write probabilities or other values as float32, in the same way as :func:`write_labels`.

    Args:
        values: (H, W, D) or (C, H, W, D), finite in float32.
        grid: of the image.
        path: ends in ``.nii`` or ``.nii.gz``.

    Raises:
        ImageError: another shape than the grid's, values that are not finite in float32, or another suffix.
        OSError: it cannot be written; an older file of that name is still there.
    """
    values = np.asarray(values)
    _check(values, grid, Path(path))
    # NaN fails the comparison too, and so do values that float32 would turn into infinity
    bad = sum(int((~(np.abs(part, dtype=np.float64) <= np.finfo(np.float32).max)).sum()) for part in values)
    if bad:
        raise ImageError(f"{path}: {bad} of {values.size} values are not finite in float32; expected finite ones.")
    _write(values, np.dtype(np.float32), grid, Path(path))


def _check(values: Array, grid: Grid, path: Path) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ImageError(f"{path}: not the name of a NIfTI file. End it with .nii or .nii.gz.")
    if values.dtype.kind not in "biuf":
        raise ImageError(f"{path}: values of type {values.dtype}; expected integers, booleans or floats.")
    if values.shape[-3:] != tuple(grid.shape) or values.ndim not in (3, 4) or not values.size:
        needed = ", ".join(map(str, grid.shape))
        raise ImageError(
            f"{path}: array of shape {values.shape}; the image's grid needs ({needed}) or (C, {needed}). Bring the "
            "prediction back to the grid of the image first."
        )


def label_dtype(labels: Array, path: str | Path) -> np.dtype:
    """Find the smallest integer type that holds all values.

    Raises:
        ImageError: fractions, NaN, Inf, or integers beyond 64 bits.
    """
    low, high = labels.min(), labels.max()  # NaN comes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _fractions(path)
    for name in _LABEL_TYPES:
        if np.iinfo(name).min <= int(low) and int(high) <= np.iinfo(name).max:
            if labels.dtype.kind == "f" and not all((part.astype(name) == part).all() for part in labels):
                raise _fractions(path)
            return np.dtype(name)
    raise ImageError(f"{path}: labels from {int(low)} to {int(high)}; no integer type of 64 bits holds them.")


def _fractions(path: str | Path) -> ImageError:
    return ImageError(f"{path}: labels with fractions, NaN or Inf; expected whole numbers. write_map takes maps.")


def _write(values: Array, dtype: np.dtype, grid: Grid, path: Path) -> None:
    header = labels_header(values, grid)
    header.set_data_dtype(dtype)
    planes = max(1, _SLAB_BYTES // (grid.shape[0] * grid.shape[1] * dtype.itemsize))
    with _stream(path) as file:
        header.write_to(file)
        for volume in values if values.ndim == 4 else (values,):
            for first in range(0, grid.shape[2], planes):
                file.write(_in_file_order(volume[:, :, first : first + planes], dtype).data)


def _in_file_order(values: Array, dtype: np.dtype) -> Array:
    """Order (H, W, D) values as the bytes of a file, uint8: little-endian, the first axis the fastest."""
    out = np.empty(values.shape[::-1], dtype.newbyteorder("<"))
    rows = max(1, _CACHED_LINES // values.shape[1])  # a line, once fetched, serves all voxels of the third axis in it
    for first in range(0, len(values), rows):
        out[:, :, first : first + rows] = values[first : first + rows].astype(dtype, copy=False).T
    return out.reshape(-1).view(np.uint8)


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    """Open the file to write to; gzip without time and name in it."""
    with replacing(path, "wb") as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip_writer(file) as packed:
            yield packed


def labels_header(values: Array, grid: Grid) -> nib.Nifti1Header:
    """Make a header with the grid's geometry; little-endian, so that the bytes are the same on every machine.

    Args:
        values: (H, W, D), or (C, H, W, D), whose C becomes the fourth axis.
        grid: of the image that they were made from.
    """
    shape = (*grid.shape, len(values)) if values.ndim == 4 else (*grid.shape, *(1,) * grid.trailing)
    large = grid.version == 2 or max(shape) > _MAX_NIFTI1_SIDE
    header = (nib.Nifti2Header if large else nib.Nifti1Header)(endianness="<")
    header.set_data_shape(shape)
    # 1 and 0, not nibabel's NaN: every reader takes them as "as stored"
    header["scl_slope"], header["scl_inter"] = 1, 0
    if grid.fields is None:
        _set_affine(header, grid)
        return header
    header["pixdim"][:4] = grid.fields["pixdim"][:4]
    for name in _GEOMETRY:
        header[name] = grid.fields[name]
    return header


def _set_affine(header: nib.Nifti1Header, grid: Grid) -> None:
    """Set the affine as sform and, if it is a rotation and scaling, as qform."""
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine_mm, code="scanner")
    header.set_qform(grid.affine_mm, code="scanner")
    off = np.abs(header.get_qform() - grid.affine_mm)[:3] @ (*grid.shape, 1)  # mm, at the far corner
    if off.max() > min(grid.spacing_mm) / 10:
        header["qform_code"] = 0  # sheared, as a CT with a tilted gantry: the quaternion would put it elsewhere
