"""What the strict door thinks of files, without a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..data.errors import ImageError
from ..data.passed_over import PassedOver, by_reason
from ..data.volume import Volume
from .inputs import find_images
from .paths import shown


def check_files(
    inputs: Sequence[str | Path],
    volume: int | None = None,
    max_voxels: int = 2**30,
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Read every file to its end, as ``vit3d predict`` would.

    Args:
        inputs: NIfTI files, folders or lists.
        volume: which volume of 4D files, from 0; None refuses them.
        max_voxels: the largest volume that is taken.
        include_labels: whether label files and the outputs of earlier runs are images, too.
        suffixes: last words of the names of images to take from folders; none takes all.

    Returns:
        For each file ``file``, ``verdict`` (``"good"``, ``"odd"`` with ``warnings``, ``"refused"`` with ``error``,
        ``"passed over"`` with ``reason``), a ``text`` to show and, of those that were read, ``shape``, ``spacing_mm``
        and ``orientation`` (of the axes' far ends).

    Raises:
        UsageError: no such file, or a folder without any.
    """
    found = find_images(inputs, "vit3d_check_writes_nothing", include_labels=include_labels, suffixes=suffixes)
    file = partial(_read_file, volume=volume, max_voxels=max_voxels, include_labels=include_labels)
    folder = partial(_read_folder, max_voxels=max_voxels)
    checked = [_check(path, folder if one.dicom else file) for one in found.cases for path in one.images]
    return [*checked, *_passed_over(found.passed_over)]


def _passed_over(files: Sequence[PassedOver]) -> list[dict[str, Any]]:
    return [
        {"file": str(path), "verdict": "passed over", "reason": reason, "text": f"{shown(path)}: {reason}"}
        for reason, paths in by_reason(files).items()
        for path in paths
    ]


def _read_file(path: Path, volume: int | None, max_voxels: int, include_labels: bool) -> list[Volume]:
    from ..data.nifti import read_volume
    from .label_values import check_label_values

    read = read_volume(path, volume, max_voxels)
    return [read if include_labels else check_label_values(read)]


def _read_folder(path: Path, max_voxels: int) -> list[Volume]:
    from ..data.dicom import find_series, read_series

    return [read_series(series, max_voxels) for series in find_series(path)]


def _check(path: Path, read: Callable[[Path], list[Volume]]) -> dict[str, Any]:
    from .overlay import axis_letters

    try:
        volumes = read(path)
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
