"""Read MetaImage files that hold their voxels, .mha (https://itk.org/Wiki/ITK/MetaIO/Documentation)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from .nifti.file_bytes import AGAIN, Stream, refusal
from .nifti.image_file import ImageHeader
from .text_headers import HEADER_LIMIT, attached_voxels, parse_numbers
from .volume import Array

_CONVERT = "Save it as .nii.gz with 3D Slicer or SimpleITK."
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_ZLIB = 15
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # MetaImage is LPS+


def parse(stream: Stream, volume: int | None) -> ImageHeader:
    """Parse the header of a MetaImage file with attached voxels; errors as of ``data.read_volume``."""
    head, path = stream.peek(HEADER_LIMIT), stream.path
    match = re.match(rb"(.*?\n|)ElementDataFile *= *([^\r\n]*)\r?\n", head, re.DOTALL)
    if match is None:
        raise refusal(path, "not MetaImage, or its header does not end", AGAIN)
    if match[2].strip() != b"LOCAL":
        raise refusal(path, "its voxels lie in another file", _CONVERT)
    lines = match[1].decode("utf-8", "replace").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    fields = {name.strip(): value.strip() for name, value in pairs}
    if fields.get("NDims") != "3" or fields.get("ElementNumberOfChannels", "1") != "1":
        problem = f"{fields.get('NDims')} axes, {fields.get('ElementNumberOfChannels', '1')} values a voxel"
        raise refusal(path, f"{problem}; expected one 3D volume of one value a voxel", _CONVERT)
    if _is_true(fields, "BinaryData", "True") is False or fields.get("HeaderSize", "0") != "0":
        raise refusal(path, "voxels as text, or behind a header of their own", _CONVERT)
    h, w, d = (int(n) for n in parse_numbers(fields.get("DimSize", ""), 3, "DimSize", path))
    wbits = _ZLIB if _is_true(fields, "CompressedData", "False") else None
    return attached_voxels(path, volume, (h, w, d), _dtype(fields, path), _affine(fields, path), match.end(), wbits)


def _is_true(fields: dict[str, str], name: str, default: str) -> bool:
    return fields.get(name, default).lower() in ("true", "1", "t")


def _dtype(fields: dict[str, str], path: Path) -> np.dtype[Any]:
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise refusal(path, f"ElementType '{kind}'; expected a real number of 8 to 64 bits per voxel", _CONVERT)
    big = any(_is_true(fields, name, "False") for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    return np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<")


def _affine(fields: dict[str, str], path: Path) -> Array:
    def first(names: str, default: str) -> str:
        return next((fields[name] for name in names.split() if name in fields), default)

    axes = parse_numbers(first("TransformMatrix Rotation Orientation", "1 0 0 0 1 0 0 0 1"), 9, "TransformMatrix", path)
    spacing = parse_numbers(first("ElementSpacing ElementSize", "1 1 1"), 3, "ElementSpacing", path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(axes, (3, 3)).T * spacing
    affine[:3, 3] = parse_numbers(first("Offset Position Origin", "0 0 0"), 3, "Offset", path)
    return _TO_RAS @ affine
