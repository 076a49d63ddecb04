"""Read a DICOM series as a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_vit3d.data.errors import ImageError, UsageError, install_extra
from monai_vit3d.data.limits import MAX_VOXELS
from monai_vit3d.data.volume import Array, Volume

from .headers import HeaderError, hush_pydicom, optional_number
from .series import Series, describe_series
from .slices import Slice
from .stack import stack_slices
from .suv import is_pet, suv_factors, units_warning

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

VOXEL_UNITS = ("stored", "suv")
_ADVICE = "Copy it again if it is cut off, or convert it, for instance with gdcmconv --raw."


def read_series(
    series: Series, max_voxels: int = MAX_VOXELS, volume: int | None = None, units: str = "stored"
) -> Volume:
    """Read a series of single-frame files, of enhanced multi-frame files or of Siemens mosaics as a volume.

    Values are rescaled by each slice's own slope and intercept (CT: HU; a PET's slopes differ from slice to slice). The
    affine comes from the positions and orientation of the slices alone; slice thickness and instance numbers are not
    used, and the spacing between slices only in a mosaic. With a tilted gantry the affine has a shear, so that every
    voxel keeps its place. Slices off the even grid from first to last by more than 0.1 mm and 1 % of the spacing cause
    a warning, by more than 10 % an error. A slice that is missing at either end is noticed only if the headers count
    the files.

    Args:
        series: from :func:`find_series`.
        max_voxels: more are refused before memory is allocated.
        volume: which volume of a series with several (time points, echoes, b-values, stacks), from 0; None refuses
            such a series.
        units: ``"stored"``, or ``"suv"``: a PET's standardised uptake values by body weight.

    Returns:
        Voxels (columns, rows, slices), float32, rescaled in float64; slices along rows x columns. Its path is the
        folder.

    Raises:
        ImageError: missing, doubled or unevenly spaced slices, fewer than two, several volumes and none picked,
            pixels that are cut off or cannot be decoded, headers without the fields for SUV, or pydicom is missing.
        UsageError: other units.
    """
    if units not in VOXEL_UNITS:
        raise UsageError(f"units={units!r}; expected one of {', '.join(VOXEL_UNITS)}.")
    slices, grid, warnings = stack_slices(series, volume)
    if np.prod(grid.shape, dtype=float) > max_voxels:
        raise ImageError(
            f"{describe_series(series)}: {grid.shape} voxels; at most {max_voxels} are taken. Raise the limit."
        )
    factors, odd = _factors(slices, units, describe_series(series))
    return Volume(series.files[0].parent, _planes(slices, factors).T, grid, (*warnings, *odd))


def _factors(slices: Sequence[Slice], units: str, where: str) -> tuple[list[float], list[str]]:
    """Compute the factor for each slice's rescaled values, and a sentence for each oddity."""
    headers = [s.header for s in slices]
    ones = [1.0] * len(slices)
    if not is_pet(headers[0]):
        return ones, [f"no PET; units={units} changes nothing"] if units != "stored" else []
    if units == "stored":
        return ones, [warning] if (warning := units_warning(headers[0])) else []
    try:
        return suv_factors(headers)
    except HeaderError as error:
        raise ImageError(
            f"{where}: SUV cannot be computed from its headers ({error}). Export the original images, or leave out "
            "units=suv."
        ) from error


def _planes(slices: Sequence[Slice], factors: Sequence[float]) -> Array:
    """Decode and rescale all slices: (slices, rows, columns) float32."""
    planes: Array = np.empty((len(slices), *slices[0].shape), np.float32)
    frames_by_file: dict[Path, dict[int, list[int]]] = {}
    for k, plane in enumerate(slices):
        frames_by_file.setdefault(plane.path, {}).setdefault(plane.frame, []).append(k)
    for path, frames in frames_by_file.items():
        image = _open(path)
        try:
            _fill(planes, image, frames, slices, factors)
        except ImageError:
            raise
        except Exception as error:  # each decoder has its own; its text may quote the header
            raise ImageError(f"{path.name}: its pixels cannot be decoded ({_why(image, error)}). {_ADVICE}") from error
    return planes


def _fill(
    planes: Array, image: Dataset, frames: dict[int, list[int]], slices: Sequence[Slice], factors: Sequence[float]
) -> None:
    """Decode frames of a file, and rescale their planes in float64."""
    from pydicom.pixels import iter_pixels

    order = sorted(frames)
    for frame, stored in zip(order, iter_pixels(image, indices=order), strict=True):
        for k in frames[frame]:
            tile = slices[k].tile
            with np.errstate(over="ignore", invalid="ignore"):
                values = _rescaled(stored if tile is None else stored[tile], slices[k].rescale)
                planes[k] = values if factors[k] == 1.0 else np.asarray(values, np.float64) * factors[k]
            if not np.isfinite(planes[k]).all():
                raise HeaderError("values that are not finite after rescaling")


def _rescaled(stored: Array, header: Dataset) -> Array:
    """Rescale stored values in float64; a slope or an intercept that is missing or blank is 1 or 0, as GDCM has it."""
    from pydicom.pixels import apply_modality_lut

    if "ModalityLUTSequence" in header:
        return np.asarray(apply_modality_lut(stored, header))
    slope, intercept = (optional_number(header, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope == 0:
        raise HeaderError("RescaleSlope is 0, so all values would be one")
    if slope is None and intercept is None:
        return stored
    return stored.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def _open(path: Path) -> Dataset:
    from pydicom import dcmread

    hush_pydicom()
    try:
        image = dcmread(path, force=True)  # a file without preamble is DICOM all the same
    except Exception as error:
        raise ImageError(f"{path.name}: damaged ({type(error).__name__}). Copy it again or remove it.") from error
    if "TransferSyntaxUID" not in image.file_meta:
        image.file_meta.TransferSyntaxUID = _transfer_syntax(image)
    return image


def _transfer_syntax(image: Dataset) -> UID:
    """Return the transfer syntax that a file without a file meta header was parsed in."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = image.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _why(image: Dataset, error: Exception) -> str:
    """Say what is wrong with the pixels, without quoting the header."""
    from pydicom.pixels import get_decoder

    if isinstance(error, HeaderError):
        return str(error)
    if not any(name in image for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return "there are none"
    syntax = image.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "an unknown transfer syntax"
    try:
        installed = get_decoder(syntax).is_available
    except NotImplementedError:
        return f"{name} cannot be decoded"
    if not installed:
        return f"{name}: no decoder is installed; {install_extra('dicom')}, or pip install pylibjpeg[all]"
    return f"{name}, {type(error).__name__}: cut off, damaged, or not as its header says"
