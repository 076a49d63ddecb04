"""Read FreeSurfer's .mgh and .mgz (https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat) strictly."""

from __future__ import annotations

import math
import struct

import numpy as np

from .nifti.file_bytes import AGAIN, Stream, refusal
from .nifti.header import check_volume_index
from .nifti.image_file import ImageHeader
from .volume import Array, Grid

_HEADER = struct.Struct(">7ih15f")  # big-endian always; the voxels begin at byte 284
_START = 284
_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def parse(stream: Stream, volume: int | None) -> ImageHeader:
    """Parse the header of an .mgh or .mgz file; errors as of ``data.read_volume``."""
    head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise refusal(stream.path, f"truncated: {len(head)} bytes; the header alone takes {_START}", AGAIN)
    version, *dims, kind, _, has_place = _HEADER.unpack(head)[:8]
    if version != 1:
        raise refusal(stream.path, f"not FreeSurfer's format: version {version}; expected 1", AGAIN)
    if min(dims) < 1:
        raise refusal(stream.path, f"shape {tuple(dims)}; every side needs a voxel", AGAIN)
    if kind not in _TYPES:
        types = "expected uint8, int16, uint16, int32 or float32"
        raise refusal(stream.path, f"voxel type {kind}; {types}", "Convert it with mri_convert -odt float.")
    h, w, d, volumes = dims
    shape = (h, w, d)
    if shape.count(1) > 1:
        raise refusal(stream.path, f"shape {shape}: values on a surface; expected one 3D volume", "Give the volume.")
    index = check_volume_index(volume, volumes, shape, stream.path)
    dtype = np.dtype(_TYPES[kind])
    length = math.prod(shape) * dtype.itemsize
    affine, warnings = _affine(np.array(_HEADER.unpack(head)[8:]), shape, bool(has_place))
    start, end = _START + index * length, _START + volumes * length
    # tags with the scan's parameters follow the voxels
    return ImageHeader(Grid(shape, affine), dtype, start, end, has_footer=True, warnings=tuple(warnings))


def _affine(numbers: Array, shape: tuple[int, int, int], has_place: bool) -> tuple[Array, list[str]]:
    """Compute the affine from spacing, the directions of the three axes, and the volume's centre, RAS+ mm."""
    spacing, axes, centre = numbers[:3], numbers[3:12].reshape(3, 3).T, numbers[12:15]
    warnings = []
    if not has_place:
        warnings.append("no position in its header: FreeSurfer's default, coronal slices of 1 mm, was taken")
        spacing, axes, centre = np.ones(3), np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2)
    return affine, warnings
