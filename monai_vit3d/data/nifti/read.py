"""Read NIfTI files strictly: whole, checked and as float32, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

from monai_vit3d.data.limits import MAX_VOXELS
from monai_vit3d.data.volume import Grid, Volume

from .file_bytes import NIFTI_SUFFIXES, Stream
from .geometry import read_geometry
from .header import NiftiHeader, parse_header, read_head
from .image_file import ImageHeader, count_image_volumes, read_all_volumes, read_image, read_image_grid


def read_nifti(
    path: str | Path,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    exact: bool = False,
    hashed: bool = False,
) -> Volume:
    """Read one ``.nii`` or ``.nii.gz`` file and no other format; all else is as of ``data.read_volume``."""
    return read_image(parse, NIFTI_SUFFIXES, path, volume, max_voxels, exact, hashed)


def read_nifti_volumes(
    path: str | Path, max_voxels: int = MAX_VOXELS, exact: bool = False, hashed: bool = False
) -> list[Volume]:
    """Read all volumes of one ``.nii`` or ``.nii.gz`` file; all else is as of ``data.read_volumes``."""
    return read_all_volumes(parse, NIFTI_SUFFIXES, path, max_voxels, exact, hashed)


def count_nifti_volumes(path: str | Path) -> int:
    """Count the volumes of a ``.nii`` or ``.nii.gz`` file by its header; all else is as of ``data.count_volumes``."""
    return count_image_volumes(parse, NIFTI_SUFFIXES, path)


def read_nifti_grid(path: str | Path, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> Grid:
    """Read where the image of a ``.nii`` or ``.nii.gz`` file lies; all else is as of ``data.read_grid``."""
    return read_image_grid(parse, NIFTI_SUFFIXES, path, volume, max_voxels)


def parse(stream: Stream, volume: int | None) -> ImageHeader:
    """Parse the header of a single NIfTI-1 or NIfTI-2 file; errors as of ``data.read_volume``."""
    return with_geometry(parse_header(read_head(stream.read), stream.path, volume))


def with_geometry(header: NiftiHeader) -> ImageHeader:
    """Add where the volume lies to what a NIfTI header declares."""
    grid, warnings = read_geometry(header)
    warnings = [*header.warnings, *warnings]
    return ImageHeader(
        grid, header.dtype, header.start, header.end, header.slope, header.inter, warnings=tuple(warnings)
    )
