"""Slices put in their order in space, and the affine that their positions give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ImageError
from ..volume import Array, Grid
from .series import Series, element, read_header, shown

if TYPE_CHECKING:
    from pydicom import Dataset

_TELLS_APART = ("EchoTime", "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_PLACE_MM = 1e-3
_TILT_DEGREES = 0.1  # from here on the tilt is told; the affine holds any


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a volume: a file, or a frame of one."""

    path: Path
    frame: int
    header: Dataset
    rescale: Dataset  # what has its RescaleSlope
    shape: tuple[int, int]  # rows, columns
    position: Array  # (3,) LPS mm, of the first voxel's centre
    orientation: Array  # (6,) along a row, down a column
    spacing: Array  # (2,) mm between rows, between columns


def stack_slices(series: Series) -> tuple[list[Slice], Grid, tuple[str, ...]]:
    """The slices in their order in space, the grid, and what was odd."""
    slices = [plane for path in series.files for plane in _slices_of(path)]
    if len(slices) < 2:
        raise ImageError(f"{shown(series)}: {len(slices)} slice; a volume needs two or more. Choose another series.")
    _check_alike(slices, shown(series))
    along, down = slices[0].orientation.reshape(2, 3)
    if not np.allclose([along @ along, down @ down, along @ down], [1, 1, 0], atol=1e-3):
        raise ImageError(
            f"{shown(series)}: ImageOrientationPatient {slices[0].orientation.tolist()}; two unit vectors at right "
            "angles are needed. Export the series again."
        )
    normal = np.cross(along, down)
    slices.sort(key=lambda s: float(s.position @ normal))
    step = _even_step(slices, normal, shown(series))
    affine = np.eye(4)
    between_rows, between_columns = slices[0].spacing
    affine[:3, :3] = np.stack([along * between_columns, down * between_rows, step], axis=1)
    affine[:3, 3] = slices[0].position
    rows, columns = slices[0].shape
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(normal, step)), normal @ step)))
    warnings = (f"slices lean by {tilt:.1f} degrees (gantry tilt); the affine has a shear",)
    grid = Grid((columns, rows, len(slices)), _LPS_TO_RAS @ affine)
    return slices, grid, warnings if tilt > _TILT_DEGREES else ()


def _slices_of(path: Path) -> list[Slice]:
    header = read_header(path)
    if header is None:
        raise ImageError(f"{path.name}: no DICOM file any more. Copy it again.")
    if element(header, "SamplesPerPixel") == 3 or element(header, "PhotometricInterpretation") == "PALETTE COLOR":
        raise ImageError(f"{path.name}: a colour image; grey values are needed. Choose the series it was made from.")
    try:
        grouped = bool(header.get("PerFrameFunctionalGroupsSequence"))
        frames = int(header.get("NumberOfFrames") or 1)
        if frames > 1 and not grouped:
            raise AttributeError(f"{frames} frames without positions of their own")
        return [_slice(path, header, frame, grouped) for frame in range(frames)]
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        raise ImageError(
            f"{path.name}: its place in space is not known ({error}). ImagePositionPatient, ImageOrientationPatient, "
            "PixelSpacing, Rows and Columns are needed. Export the original images again."
        ) from error


def _slice(path: Path, header: Dataset, frame: int, grouped: bool) -> Slice:
    def part(macro: str) -> Dataset:
        """The functional group of a frame; of a single-frame file, the file."""
        groups = [header.PerFrameFunctionalGroupsSequence[frame]] if grouped else []
        groups += list(header.get("SharedFunctionalGroupsSequence") or []) if grouped else []
        return next((g[macro].value[0] for g in groups if g.get(macro)), header)

    position = _numbers(part("PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = _numbers(part("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing = _numbers(part("PixelMeasuresSequence"), "PixelSpacing", 2)
    if spacing.min() <= 0:
        raise ValueError(f"PixelSpacing {spacing.tolist()}")
    shape = int(header.Rows), int(header.Columns)
    return Slice(path, frame, header, part("PixelValueTransformationSequence"), shape, position, orientation, spacing)


def _numbers(part: Dataset, name: str, count: int) -> Array:
    values = np.array(part.get(name) or [], np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{name} is {values.tolist() or 'missing'}")
    return values


def _check_alike(slices: Sequence[Slice], where: str) -> None:
    for what, values, tolerance in (
        ("size (rows, columns)", [s.shape for s in slices], 0),
        ("PixelSpacing", [s.spacing for s in slices], 1e-4),
        ("orientation", [s.orientation for s in slices], 1e-4),
    ):
        table = np.array(values, np.float64)
        odd = np.abs(table - table[0]).max(axis=1) > tolerance
        if odd.any():
            k = int(odd.argmax())
            raise ImageError(
                f"{where}: {what} {table[0].tolist()} in {slices[0].path.name}, {table[k].tolist()} in "
                f"{slices[k].path.name}; one volume has one. Give the slices of each a folder of their own."
            )
    if len({element(s.header, "FrameOfReferenceUID") for s in slices}) > 1:
        raise ImageError(
            f"{where}: slices with different FrameOfReferenceUID; their positions cannot be compared. Give the slices "
            "of each a folder of their own."
        )


def _even_step(slices: Sequence[Slice], normal: Array, where: str) -> Array:
    """From each slice to the next, (3,) LPS mm; the same everywhere."""
    positions = np.array([s.position for s in slices])
    gaps = np.diff(positions @ normal)
    if gaps.min() < _SAME_PLACE_MM:
        raise ImageError(_doubled(slices, int(gaps.argmin()), where))
    step = (positions[-1] - positions[0]) / len(gaps)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if off.max() <= 0.01 * np.linalg.norm(step):
        return step
    steps, k = gaps / gaps.min(), int(gaps.argmax())
    missing = int(steps.round().sum()) - len(steps)
    if missing and np.abs(steps - steps.round()).max() < 0.05:
        raise ImageError(
            f"{where}: {missing} slice(s) missing, the most between {slices[k].path.name} and "
            f"{slices[k + 1].path.name}: {gaps[k]:.3f} mm apart, others {gaps.min():.3f} mm. Copy or export the whole "
            "series again."
        )
    raise ImageError(
        f"{where}: uneven slices, {gaps.min():.3f} to {gaps.max():.3f} mm apart and up to {off.max():.3f} mm off an "
        "even grid; 1 % of the spacing is taken. Export the series again, or resample it to an even grid."
    )


def _doubled(slices: Sequence[Slice], k: int, where: str) -> str:
    one, other = slices[k], slices[k + 1]
    apart = [tag for tag in _TELLS_APART if element(one.header, tag) != element(other.header, tag)]
    names = " and ".join(dict.fromkeys([one.path.name, other.path.name]))
    if one.frame == other.frame and element(one.header, "SOPInstanceUID") == element(other.header, "SOPInstanceUID"):
        return f"{where}: {names} are the same image; one of each is needed. Remove one."
    differ = f" They differ in {', '.join(apart)}." if apart else ""
    return (
        f"{where}: two slices at one place, in {names}; one 3D volume is needed.{differ} Give the slices of one time "
        "point, echo or b-value a folder of their own."
    )
