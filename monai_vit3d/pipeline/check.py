"""What the strict door thinks of files, without a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..data.errors import ImageError
from ..data.volume import Volume
from .inputs import find_images


def check_files(
    inputs: Sequence[str | Path], volume: int | None = None, max_voxels: int = 2**30
) -> list[dict[str, Any]]:
    """Read every file to its end, as ``vit3d predict`` would.

    Args:
        inputs: NIfTI files, folders or lists.
        volume: which volume of 4D files, from 0; None refuses them.
        max_voxels: the largest volume that is taken.

    Returns:
        For each file ``file``, ``verdict`` (``"good"``, ``"odd"`` with ``warnings``, ``"refused"`` with ``error``), a
        ``text`` to show and, unless refused, ``shape``, ``spacing_mm`` and ``orientation`` (of the axes' far ends).

    Raises:
        UsageError: no such file, or a folder without any.
    """
    found = find_images(inputs, "vit3d_check_writes_nothing")
    return [
        _check(path, partial(_read_folder if one.dicom else _read_file, path, volume, max_voxels))
        for one in found
        for path in one.images
    ]


def _read_file(path: Path, volume: int | None, max_voxels: int) -> list[Volume]:
    from ..data.nifti import read_volume

    return [read_volume(path, volume, max_voxels)]


def _read_folder(path: Path, volume: int | None, max_voxels: int) -> list[Volume]:
    from ..data.dicom import find_series, read_series

    return [read_series(series, max_voxels) for series in find_series(path)]


def _check(path: Path, read: Callable[[], list[Volume]]) -> dict[str, Any]:
    from .overlay import axis_letters

    try:
        volumes = read()
    except ImageError as error:
        return {"file": str(path), "verdict": "refused", "error": str(error), "text": str(error)}
    found, warnings = volumes[0], [warning for one in volumes for warning in one.warnings]
    spacing = [round(mm, 4) for mm in found.grid.spacing_mm]
    letters = axis_letters(found.grid.affine_mm)
    size = " x ".join(map(str, found.grid.shape))
    text = f"{path}: {size} voxels, {' x '.join(map(str, spacing))} mm, {letters}"
    return {
        "file": str(path),
        "verdict": "odd" if warnings else "good",
        "shape": list(found.grid.shape),
        "spacing_mm": spacing,
        "orientation": letters,
        "warnings": warnings,
        "text": "; ".join([text, *warnings]),
    }
