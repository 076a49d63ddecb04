"""A 3D image and its grid, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray  # of any dtype


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a volume, and the header fields that an output on the same grid copies: none that names a patient.

    Args:
        shape: voxels along the three axes.
        affine_mm: (4, 4) float64, voxel index to world, RAS+ mm.
        trailing: how many axes of 1 followed the third in the file; an output has them again.
        fields: geometry fields of the NIfTI header, unchanged, by nibabel's names, in native byte order.
        version: 1 or 2, of the NIfTI format.
    """

    shape: tuple[int, int, int]
    affine_mm: Array
    trailing: int = 0
    fields: Mapping[str, Array] | None = None
    version: int = 1

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel."""
        x, y, z = np.sqrt((self.affine_mm[:3, :3] ** 2).sum(axis=0)).tolist()
        return x, y, z

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.affine_mm[:3, :3])) / 1000)


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D image, ready for a network.

    Args:
        path: the file, or folder of a DICOM series, that it came from.
        voxels: (H, W, D) float32, all finite.
        grid: its shape and place.
        warnings: a sentence for each oddity of the file.
        sha256: of each file that it came from, of the bytes that were read; empty if not requested.
    """

    path: Path
    voxels: Array
    grid: Grid
    warnings: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
