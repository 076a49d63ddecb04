"""Read NRRD files that hold their voxels (https://teem.sourceforge.net/nrrd/format.html)."""

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
_WORDS = {
    "i1": "signed char,int8,int8_t",
    "u1": "uchar,unsigned char,uint8,uint8_t",
    "i2": "short,short int,signed short,signed short int,int16,int16_t",
    "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    "i4": "int,signed int,int32,int32_t",
    "u4": "uint,unsigned int,uint32,uint32_t",
    "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
    "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {word: code for code, words in _WORDS.items() for word in words.split(",")}
_WBITS = {"raw": None, "gzip": 31, "gz": 31}
# signs that lead from a space to RAS+
_SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}


def parse(stream: Stream, volume: int | None) -> ImageHeader:
    """Parse the header of an NRRD file with attached voxels; errors as of ``data.read_volume``."""
    path = stream.path
    fields, start = _fields(stream.peek(HEADER_LIMIT), path)
    if "data file" in fields or "datafile" in fields:
        raise refusal(path, "its voxels lie in another file", _CONVERT)
    if any(fields.get(name, "0") != "0" for name in ("byte skip", "byteskip", "line skip", "lineskip")):
        raise refusal(path, "it skips bytes or lines before the voxels", _CONVERT)
    if fields.get("dimension") != "3":
        problem = f"dimension {fields.get('dimension')}; expected one 3D volume of one value a voxel"
        raise refusal(path, problem, "Save the volume that is meant as .nii.gz.")
    encoding = fields.get("encoding", "").lower()
    if encoding not in _WBITS:
        raise refusal(path, f"encoding '{encoding}'; expected raw or gzip", _CONVERT)
    h, w, d = (int(n) for n in parse_numbers(fields.get("sizes", ""), 3, "sizes", path))
    affine, warnings = _affine(fields, path)
    dtype, wbits = _dtype(fields, path), _WBITS[encoding]
    return attached_voxels(path, volume, (h, w, d), dtype, affine, start, wbits, tuple(warnings))


def _fields(head: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Parse the fields by name, lower-case, and find the end of the header, after an empty line."""
    match = re.match(rb"NRRD000\d\r?\n(.*?)\r?\n\r?\n", head, re.DOTALL)
    if match is None:
        raise refusal(path, "not NRRD, or its header does not end", AGAIN)
    lines = match[1].decode("utf-8", "replace").splitlines()
    pairs = (line.split(": ", 1) for line in lines if not line.startswith("#") and ": " in line)
    return {name.strip().lower(): value.strip() for name, value in pairs}, match.end()


def _dtype(fields: dict[str, str], path: Path) -> np.dtype[Any]:
    kind = fields.get("type", "").lower()
    if kind not in _TYPES:
        raise refusal(path, f"type '{kind}'; expected a real number of 8 to 64 bits per voxel", _CONVERT)
    dtype = np.dtype(_TYPES[kind])
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if dtype.itemsize > 1 and order is None:
        raise refusal(path, "no endian in its header; expected little or big", AGAIN)
    return dtype.newbyteorder(">" if order == ">" else "<")


def _affine(fields: dict[str, str], path: Path) -> tuple[Array, list[str]]:
    warnings = []
    space = fields.get("space", "").lower()
    signs = _SPACES.get(space)
    if signs is None:
        subject = f"its space, '{space}', is" if space else "no space in its header:"
        warnings.append(f"{subject} not one of left, right, anterior and posterior; ITK's default, LPS, was taken")
    affine = np.eye(4)
    if "space directions" in fields:
        text = re.sub("[(),]", " ", fields["space directions"])
        affine[:3, :3] = np.reshape(parse_numbers(text, 9, "space directions", path), (3, 3)).T
    elif "spacings" in fields:
        affine[:3, :3] = np.diag(parse_numbers(fields["spacings"], 3, "spacings", path))
    else:
        warnings.append("no space directions or spacings in its header; voxels of 1 mm were taken")
    origin = re.sub("[(),]", " ", fields.get("space origin", "0 0 0"))
    affine[:3, 3] = parse_numbers(origin, 3, "space origin", path)
    return np.diag([*(signs or (-1, -1, 1)), 1.0]) @ affine, warnings
