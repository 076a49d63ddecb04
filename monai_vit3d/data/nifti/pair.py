"""Read NIfTI and Analyze 7.5 pairs, a header .hdr and voxels .img, as strictly as single files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel import Nifti1Header
from nibabel.analyze import AnalyzeHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

from monai_vit3d.data.formats import partner

from .file_bytes import AGAIN, Stream, open_stream, refusal
from .header import magic_of, parse_header, read_head
from .image_file import ImageHeader
from .read import with_geometry

_HEADER = (".hdr", ".hdr.gz")
_MAGIC = (b"ni1\0", b"ni2\0", b"n+1\0", b"n+2\0")
_NO_SIDES = (
    "Analyze 7.5 does not say which side is left; as nibabel and SPM do, the first axis was taken to run from right "
    "to left"
)


def parse(stream: Stream, volume: int | None) -> ImageHeader:
    """Parse the header that lies beside an ``.img``; errors as of ``data.read_volume``.

    Args:
        stream: of the ``.img``.
        volume: which one of a 4D file, from 0.
    """
    path = stream.path
    other = partner(path)
    if other is None:
        raise refusal(path, "half of an Analyze or NIfTI pair; its .hdr is not there", "Put it beside the .img.")
    with open_stream(other, stream.hashed, _HEADER) as header_stream:
        head = read_head(header_stream.read)
        sha256 = header_stream.sha256()
    warnings = [*header_stream.warnings]
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if 348 in sizes and len(head) >= 348 and magic_of(head) not in _MAGIC:
        head = _nifti_of_analyze(head[:348], path, other)
        warnings.append(_NO_SIDES)
    header = with_geometry(parse_header(head, other, volume, pair=True))
    return replace(header, warnings=(*warnings, *header.warnings), sha256=sha256)


def _nifti_of_analyze(head: bytes, path: Path, other: Path) -> bytes:
    """Make a NIfTI header of an Analyze one: shape, voxel type and size, scale, and nibabel's affine."""
    if path.with_suffix(".mat").exists():
        problem = f"an affine of SPM's lies beside it, {path.with_suffix('.mat').name}, which is not read"
        raise refusal(path, problem, "Convert the three files with SPM or nibabel.")
    order = "<" if int.from_bytes(head[:4], "little") == 348 else ">"
    analyze: AnalyzeHeader = Spm2AnalyzeHeader(head, endianness=order, check=False)
    nifti = Nifti1Header(endianness=order)
    for name in ("dim", "pixdim", "vox_offset"):
        nifti[name] = analyze[name]
    nifti["pixdim"][0] = 1
    try:
        nifti.set_data_dtype(analyze.get_data_dtype())
        slope, inter = analyze.get_slope_inter()
        affine = analyze.get_best_affine()
    except (HeaderDataError, ValueError, KeyError) as error:
        raise refusal(other, f"an Analyze header that cannot be read ({error})", AGAIN) from error
    nifti["scl_slope"], nifti["scl_inter"] = 1 if slope is None else slope, inter or 0
    if np.isfinite(affine).all():
        nifti.set_sform(affine, code=2)
    nifti.set_xyzt_units("mm")
    nifti["magic"] = b"ni1"
    return bytes(nifti.binaryblock)
