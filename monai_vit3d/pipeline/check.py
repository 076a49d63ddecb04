"""What the strict door thinks of files, without a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.errors import ImageError
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
    paths = [path for found in find_images(inputs, Path(".vit3d-no-output")) for path in found.images]
    return [_check(path, volume, max_voxels) for path in paths]


def _check(path: Path, volume: int | None, max_voxels: int) -> dict[str, Any]:
    from ..data.nifti import read_volume
    from .overlay import axis_letters

    try:
        found = read_volume(path, volume, max_voxels)
    except ImageError as error:
        return {"file": str(path), "verdict": "refused", "error": str(error), "text": str(error)}
    spacing = [round(mm, 4) for mm in found.grid.spacing_mm]
    letters = axis_letters(found.grid.affine_mm)
    size = " x ".join(map(str, found.grid.shape))
    text = f"{path}: {size} voxels, {' x '.join(map(str, spacing))} mm, {letters}"
    return {
        "file": str(path),
        "verdict": "odd" if found.warnings else "good",
        "shape": list(found.grid.shape),
        "spacing_mm": spacing,
        "orientation": letters,
        "warnings": list(found.warnings),
        "text": "; ".join([text, *found.warnings]),
    }
