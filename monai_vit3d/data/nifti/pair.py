"""NIfTI and Analyze 7.5 pairs: a header, .hdr, and voxels, .img. Read as strictly as a single file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel import Nifti1Header
from nibabel.analyze import AnalyzeHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

from ..readers import partner
from ..volume import Grid, Volume
from .file_bytes import AGAIN, open_stream, refusal
from .geometry import read_geometry
from .header import NiftiHeader, magic_of, parse_header, read_head
from .read import MAX_VOXELS, any_bits, check_count, read_voxels

_IMAGE, _HEADER = (".img", ".img.gz"), (".hdr", ".hdr.gz")
_MAGIC = (b"ni1\0", b"ni2\0", b"n+1\0", b"n+2\0")
_NO_SIDES = (
    "Analyze 7.5 does not say which side is left; as nibabel and SPM do, the first axis was taken to run from right "
    "to left"
)


def read_volume(
    path: str | Path,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    exact: bool = False,
    hashed: bool = False,
) -> Volume:
    """Read one volume; arguments, result and errors as of ``data.read_volume``. ``path`` is the ``.img``."""
    with any_bits():
        header, warnings, sha256 = _header(Path(path), volume, max_voxels, hashed)
        with open_stream(path, hashed, _IMAGE) as stream:
            voxels, voxel_warnings = read_voxels(stream, header, exact)
            sha256 += stream.sha256()
        grid, geometry_warnings = read_geometry(header, stream.path)
    told = (*stream.warnings, *warnings, *header.warnings, *geometry_warnings, *voxel_warnings)
    return Volume(stream.path, voxels, grid, told, sha256)


def read_grid(path: str | Path, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> Grid:
    """Read where the image lies; arguments and errors as of ``data.read_grid``."""
    with any_bits():
        header = _header(Path(path), volume, max_voxels, hashed=False)[0]
        with open_stream(path, suffixes=_IMAGE) as stream:
            stream.check_size(header.end)
        return read_geometry(header, path)[0]


def _header(
    path: Path, volume: int | None, max_voxels: int, hashed: bool
) -> tuple[NiftiHeader, list[str], tuple[str, ...]]:
    """The header of a pair, what is odd about its file, and its hash."""
    other = partner(path)
    if other is None:
        raise refusal(path, "half of an Analyze or NIfTI pair; its .hdr is not there", "Put it beside the .img.")
    with open_stream(other, hashed, _HEADER) as stream:
        head = read_head(stream.read)
        sha256 = stream.sha256()
    warnings = [*stream.warnings]
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if 348 in sizes and len(head) >= 348 and magic_of(head) not in _MAGIC:
        head = _nifti_of_analyze(head[:348], path, other)
        warnings.append(_NO_SIDES)
    header = parse_header(head, other, volume, pair=True)
    check_count(header.shape, max_voxels, path)
    return header, warnings, sha256


def _nifti_of_analyze(head: bytes, path: Path, other: Path) -> bytes:
    """The NIfTI header of an Analyze image: shape, voxel type and size, scale, and the affine that nibabel gives it."""
    if path.with_suffix(".mat").exists():
        found = f"an affine of SPM's lies beside it, {path.with_suffix('.mat').name}, which is not read"
        raise refusal(path, found, "Convert the three files with SPM or nibabel.")
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
