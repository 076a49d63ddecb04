"""Read a NIfTI header strictly: it declares one 3D image of real numbers, or an error says why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header, data_type_codes
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from .file_bytes import AGAIN, describe_content, refusal

RESAVE = "Export it again, or repair the header with the program that wrote it."

_CODES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REAL = "expected a real number of 8 to 64 bits per voxel"


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """One 3D image as its header declares it.

    Args:
        nifti: the raw fields, in the file's byte order, unchanged.
        version: 1 or 2.
        shape: voxels along the three axes.
        trailing: how many axes of 1 follow the third.
        dtype: of a stored voxel, with byte order.
        start: byte at which the voxels of this image begin.
        end: byte at which the voxels of the file end.
        slope: of the stored values.
        inter: added to slope times value.
        warnings: a sentence for each oddity.
    """

    nifti: Nifti1Header
    version: int
    shape: tuple[int, int, int]
    trailing: int
    dtype: np.dtype[Any]
    start: int
    end: int
    slope: float
    inter: float
    warnings: tuple[str, ...] = ()


def read_head(read: Callable[[int], bytes]) -> bytes:
    """Read the header and the four bytes after it, 352 of NIfTI-1 or 544 of NIfTI-2; fewer of a shorter file.

    Args:
        read: gives the next bytes of the file, from its beginning.
    """
    head = read(352)  # no byte more: voxels may begin there, and a gzip stream does not go back
    return head + read(192) if 540 in _sizes(head) else head


def parse_header(head: bytes, path: str | Path, volume: int | None = None, pair: bool = False) -> NiftiHeader:
    """Read the header of a NIfTI-1 or NIfTI-2 image of either byte order.

    Args:
        head: from :func:`read_head`.
        path: its name, for messages.
        volume: which one of a 4D file, from 0.
        pair: whether it is the header of a pair, whose voxels are in the other file, instead of a single file's.

    Raises:
        ImageError: the header does not declare one 3D image of real numbers.
    """
    nifti, version = _raw_fields(head, path, pair)
    shape, trailing, volumes = image_shape(nifti, path)
    index = check_volume_index(volume, volumes, shape, path)
    dtype = _dtype(nifti, path)
    check_pixdim(nifti, path)
    offset, warnings = _offset(nifti, head, path, pair)
    try:
        slope, inter = nifti.get_slope_inter()  # None for "as stored"
    except HeaderDataError as error:
        problem = f"scl_slope {nifti['scl_slope']} with scl_inter {nifti['scl_inter']}; expected finite numbers"
        raise refusal(path, problem, RESAVE) from error
    bits = int(nifti["bitpix"])
    if bits != 8 * dtype.itemsize:
        warnings.append(f"bitpix {bits} contradicts datatype {dtype.name}; the datatype was believed")
    length = math.prod(shape) * dtype.itemsize
    return NiftiHeader(
        nifti=nifti,
        version=version,
        shape=shape,
        trailing=trailing,
        dtype=dtype,
        start=offset + index * length,
        end=offset + volumes * length,
        slope=1.0 if slope is None else slope,
        inter=0.0 if inter is None else inter,
        warnings=tuple(warnings),
    )


def _raw_fields(head: bytes, path: str | Path, pair: bool) -> tuple[Nifti1Header, int]:
    for order, size in zip("<>", _sizes(head)):
        if size not in (348, 540):
            continue
        least = size if pair else size + 4
        if len(head) < least:
            raise refusal(path, f"truncated: {len(head)} bytes; the header alone takes {least}", AGAIN)
        _check_magic(head, size, path, pair)
        # check=False: nibabel would repair what is refused here or warned of
        kind = Nifti1Header if size == 348 else Nifti2Header
        return kind(head[:size], endianness=order, check=False), 1 if size == 348 else 2
    description = describe_content(head)
    if description:
        raise refusal(path, *description)
    begins = f"it begins with {head[:4].hex(' ')}" if head else "there is nothing in it"
    problem = f"not NIfTI: {begins}; expected a header of 348 or 540 bytes"
    raise refusal(path, problem, "Convert it to NIfTI with the program that wrote it, or copy it again.")


def _sizes(head: bytes) -> tuple[int, int]:
    """Read ``sizeof_hdr`` in either byte order."""
    return int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")


def magic_of(head: bytes) -> bytes:
    """Return the four bytes that name the kind of NIfTI; in Analyze 7.5 they are anything else."""
    return head[4:8] if 540 in _sizes(head) else head[344:348]


def _check_magic(head: bytes, size: int, path: str | Path, pair: bool) -> None:
    magic = magic_of(head)
    if pair and magic == (b"ni1\0" if size == 348 else b"ni2\0"):
        return
    if not pair and magic in (b"ni1\0", b"ni2\0"):
        problem = "the header of a pair (.hdr and .img); expected one file with header and voxels"
        raise refusal(path, problem, "Convert the pair with FSL's fslchfiletype NIFTI_GZ, or nibabel.")
    if magic != (b"n+1\0" if size == 348 else b"n+2\0"):
        kind = "Analyze 7.5, which does not tell left from right" if size == 348 else "not NIfTI-2"
        raise refusal(
            path, f"{kind} (magic {magic!r}); expected NIfTI", "Convert the scanner's DICOM files with dcm2niix."
        )
    if size == 540 and head[8:12] not in (b"\r\n\x1a\n", b"\0\0\0\0"):
        raise refusal(path, "its line ends were changed in transfer, so its voxels are damaged", "Copy it as binary.")


def image_shape(nifti: Nifti1Header, path: str | Path) -> tuple[tuple[int, int, int], int, int]:
    """Read the three sides, how many axes of 1 follow, and how many volumes there are.

    Raises:
        ImageError: no sides of a 3D image, or of several.
    """
    dim = [int(n) for n in nifti["dim"]]
    if not 1 <= dim[0] <= 7:
        raise refusal(path, f"dim[0] is {dim[0]}, the number of axes; 1 to 7 is possible", RESAVE)
    full = tuple(dim[1 : dim[0] + 1])
    if min(full) < 1:
        raise refusal(path, f"shape {full}; every side needs a voxel", RESAVE)
    if len(full) < 3:
        raise refusal(path, f"{len(full)}D image {full}; expected one 3D volume", "Give the volume, not a slice.")
    h, w, d, *extra = full
    if math.prod(extra[1:]) > 1:
        problem = f"{len(full)}D image {full}, several values a voxel; expected one 3D volume"
        raise refusal(path, problem, "Save the volume that is meant as a file of its own.")
    volumes = extra[0] if extra else 1
    return (h, w, d), len(extra) if volumes == 1 else 0, volumes


def check_volume_index(volume: int | None, volumes: int, shape: tuple[int, ...], path: str | Path) -> int:
    """Return the number of the volume to read, from 0.

    Raises:
        ImageError: there are several and none was picked, or there is no such volume.
    """
    if volume is None and volumes > 1:
        problem = f"4D image {(*shape, volumes)}; expected one 3D volume"
        raise refusal(path, problem, "Pick one with volume=N.")
    index = volume or 0
    if not 0 <= index < volumes:
        problem = f"volume {index} of {volumes}; 0 to {volumes - 1} can be picked"
        raise refusal(path, problem, "Pick one of these with volume=N.")
    return index


def _dtype(nifti: Nifti1Header, path: str | Path) -> np.dtype[Any]:
    code = int(nifti["datatype"])
    if code not in _CODES:
        name = data_type_codes.label[code] if code in data_type_codes else "unknown"
        advice = "Convert it to grey values, float32 say."
        raise refusal(path, f"datatype {name} (code {code}); {_REAL}", advice)
    return np.dtype(_CODES[code]).newbyteorder(nifti.endianness)


def check_pixdim(nifti: Nifti1Header, path: str | Path) -> None:
    """Refuse voxel sizes that are not finite and above 0.

    Raises:
        ImageError: they are not.
    """
    sizes = nifti["pixdim"][1:4].astype(float)
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        problem = f"voxel sizes (pixdim) {sizes.tolist()}; expected numbers above 0"
        raise refusal(path, problem, RESAVE)


def _offset(nifti: Nifti1Header, head: bytes, path: str | Path, pair: bool) -> tuple[int, list[str]]:
    """Return the byte at which the voxels begin."""
    least, value = 0 if pair else nifti.single_vox_offset, float(nifti["vox_offset"])
    if value == 0 and not pair and not any(head[least - 4 : least]):
        # unset; nibabel writes such a header with the least offset, though it reads the header itself as voxels
        return least, [f"vox_offset is not set; voxels were read from byte {least}"]
    if not math.isfinite(value) or value != int(value) or value < least:
        raise refusal(path, f"vox_offset {value:g}; expected a whole number of {least} or more", RESAVE)
    return int(nifti["vox_offset"]), []
