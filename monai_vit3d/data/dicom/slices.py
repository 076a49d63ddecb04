"""Read the planes of DICOM files: of a classic file, frames of a multi-frame file, tiles of a Siemens mosaic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Array

from .headers import HeaderError, element, element_number, element_numbers, read_header
from .kinds import sop_class
from .mosaic import is_mosaic, read_mosaic

if TYPE_CHECKING:
    from pydicom import Dataset

_NEEDED = "expected ImagePositionPatient, ImageOrientationPatient, PixelSpacing, Rows and Columns"


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of a volume.

    Args:
        path: its file.
        frame: which frame of the file, from 0.
        header: the file's elements.
        groups: the functional groups of a frame, its own and then the shared ones; none of a classic file.
        shape: rows, columns.
        position: (3,) LPS mm, of the first voxel's centre.
        orientation: (6,) along a row, down a column.
        spacing: (2,) mm between rows, between columns.
        tile: rows and columns in the frame, of a mosaic's slice.
    """

    path: Path
    frame: int
    header: Dataset
    groups: tuple[Dataset, ...]
    shape: tuple[int, int]
    position: Array
    orientation: Array
    spacing: Array
    tile: tuple[slice, slice] | None = None

    def macro(self, name: str) -> Dataset:
        """Return a functional group's item; the file's header where there is none."""
        return _macro(self.header, self.groups, name)

    @property
    def rescale(self) -> Dataset:
        """The dataset that holds RescaleSlope and RescaleIntercept."""
        return self.macro("PixelValueTransformationSequence")


def read_slices(path: Path) -> list[Slice]:
    """Read the places of a file's planes.

    Raises:
        ImageError: damaged, or planes without a place in space.
    """
    header = read_header(path)
    if header is None:
        raise ImageError(f"{path.name}: no DICOM file any more. Copy it again.")
    if element(header, "Rows") is None:
        raise ImageError(f"{path.name}: no Rows; the file is cut off or damaged. Copy it again or remove it.")
    try:
        if is_mosaic(header):
            return _tiles(path, header)
        return _frames(path, header)
    except HeaderError as error:
        raise ImageError(
            f"{path.name}: its place in space is not known ({error}); {_NEEDED}. Copy it again or "
            "export the original images again."
        ) from error


def _frames(path: Path, header: Dataset) -> list[Slice]:
    own = element(header, "PerFrameFunctionalGroupsSequence")
    frames = int(element_number(header, "NumberOfFrames") or 1)
    if frames > 1 and not own:
        raise HeaderError(f"{frames} frames without positions of their own ({sop_class(header)[1]})")
    if own and len(own) != frames:
        raise HeaderError(f"{frames} frames, but PerFrameFunctionalGroupsSequence has {len(own)}")
    shared = tuple(element(header, "SharedFunctionalGroupsSequence") or ()) if own else ()
    return [_slice(path, header, frame, (own[frame], *shared) if own else ()) for frame in range(frames)]


def _slice(path: Path, header: Dataset, frame: int, groups: tuple[Dataset, ...]) -> Slice:
    position = element_numbers(_macro(header, groups, "PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = element_numbers(_macro(header, groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    return Slice(path, frame, header, groups, _shape(header), position, orientation, _spacing(header, groups))


def _tiles(path: Path, header: Dataset) -> list[Slice]:
    _shape(header)
    mosaic = read_mosaic(header)
    orientation, spacing = element_numbers(header, "ImageOrientationPatient", 6), _spacing(header, ())
    return [
        Slice(path, 0, header, (), mosaic.shape, mosaic.corner + k * mosaic.step, orientation, spacing, mosaic.tile(k))
        for k in range(mosaic.count)
    ]


def _shape(header: Dataset) -> tuple[int, int]:
    rows, columns = (int(element_numbers(header, name, 1)[0]) for name in ("Rows", "Columns"))
    if min(rows, columns) < 1:
        raise HeaderError("Rows or Columns is 0")
    return rows, columns


def _spacing(header: Dataset, groups: tuple[Dataset, ...]) -> Array:
    spacing = element_numbers(_macro(header, groups, "PixelMeasuresSequence"), "PixelSpacing", 2)
    if spacing.min() <= 0:
        raise HeaderError(f"PixelSpacing {spacing.tolist()}")
    return spacing


def _macro(header: Dataset, groups: tuple[Dataset, ...], name: str) -> Dataset:
    found: Any = (element(group, name) for group in groups)
    return next((items[0] for items in found if items), header)
