"""Which image formats are read: a row for each, by suffix. A new format is a new row and its module."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .formats import partner, unknown_name
from .limits import MAX_VOXELS

if TYPE_CHECKING:
    from .nifti.image_file import ParseHeader
    from .volume import Grid, Volume


@dataclass(frozen=True)
class Reader:
    """A format.

    Args:
        name: what messages call it.
        suffixes: lower-case, with the dot.
        module: of this package; its ``parse(stream, volume)`` gives an :class:`~.nifti.image_file.ImageHeader` or
            refuses the file. It is imported when the first such file is read.
        converter: what makes NIfTI of such files.
        partner: suffix of a second file that each image needs, beside it and of the same name.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    converter: str = ""
    partner: str = ""


READERS = (
    Reader("NIfTI", (".nii", ".nii.gz"), "nifti.read"),
    Reader("a NIfTI or Analyze pair", (".img", ".img.gz"), "nifti.pair", "FSL's fslchfiletype NIFTI_GZ", ".hdr"),
    Reader("FreeSurfer's format", (".mgz", ".mgh", ".mgh.gz"), "freesurfer", "FreeSurfer's mri_convert"),
    Reader("NRRD", (".nrrd",), "nrrd", "3D Slicer or SimpleITK"),
    Reader("MetaImage", (".mha",), "metaimage", "3D Slicer or SimpleITK"),
)
_SUFFIX = re.compile(
    rf"(?:{'|'.join(re.escape(suffix) for reader in READERS for suffix in reader.suffixes)})\Z", re.IGNORECASE
)


def without_suffix(name: str) -> str:
    """Strip an image's suffix, ``a.b.nii.gz`` to ``a.b``; other names stay as they are."""
    return _SUFFIX.sub("", name)


def reader_for(path: str | Path) -> Reader | None:
    """Find the format of an image by its name; None for other files, and for half of a pair without its other half."""
    match = _SUFFIX.search(os.path.basename(path))
    if match is None:
        return None
    reader = next(reader for reader in READERS if match[0].lower() in reader.suffixes)
    return reader if not reader.partner or partner(path) else None


def read_volume(
    path: str | Path,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    exact: bool = False,
    hashed: bool = False,
) -> Volume:
    """Read one 3D image of any format of ``READERS``; every byte of the file is read, and checksums are verified.

    Args:
        path: the file; of a pair, the ``.img``.
        volume: which one of a 4D file, from 0.
        max_voxels: larger images are refused.
        exact: refuse voxels that would be repaired (NaN, infinite ones, values beyond float32), as for labels.
        hashed: whether to give the SHA-256 of the files, too, taken from the very bytes that were read.

    Returns:
        finite float32 voxels (H, W, D), where they lie, and a sentence for each oddity of the file.

    Raises:
        ImageError: the file is no such image, or damaged.

    Example:
        >>> t1 = read_volume("t1.nii.gz")  # doctest: +SKIP
        >>> t1.voxels.shape, t1.grid.spacing_mm, t1.warnings  # doctest: +SKIP
    """
    from .nifti.image_file import read_image

    return read_image(*_parser(path), path, volume, max_voxels, exact, hashed)


def read_volumes(
    path: str | Path, max_voxels: int = MAX_VOXELS, exact: bool = False, hashed: bool = False
) -> list[Volume]:
    """Read all volumes of a file, as the channels of one image; arguments and errors as of :func:`read_volume`.

    Returns:
        The volumes in order, of one grid; one of a 3D file. The first has the warnings about the file, and its SHA-256.
    """
    from .nifti.image_file import read_all_volumes

    return read_all_volumes(*_parser(path), path, max_voxels, exact, hashed)


def count_volumes(path: str | Path) -> int:
    """Count the volumes of a file by its header alone.

    Raises:
        ImageError: as :func:`read_volume`, so far as the header shows.
    """
    from .nifti.image_file import count_image_volumes

    return count_image_volumes(*_parser(path), path)


def read_grid(path: str | Path, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> Grid:
    """Read an image's grid from its header alone; voxels are neither read nor checked.

    Args:
        path: as in :func:`read_volume`.
        volume: which one of a 4D file, from 0.
        max_voxels: larger images are refused.

    Raises:
        ImageError: as :func:`read_volume`, so far as header and file size show.
    """
    from .nifti.image_file import read_image_grid

    return read_image_grid(*_parser(path), path, volume, max_voxels)


def _parser(path: str | Path) -> tuple[ParseHeader, tuple[str, ...]]:
    """Return the header parser for a file, and the suffixes that its name may have."""
    reader = reader_for(path)
    if reader is None:
        raise unknown_name(path)
    parse: ParseHeader = import_module(f".{reader.module}", __package__).parse
    return parse, reader.suffixes
