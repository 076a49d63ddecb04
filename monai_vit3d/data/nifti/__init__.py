"""Read and write NIfTI files strictly; the only package that imports nibabel."""

from __future__ import annotations

from typing import Any

from monai_vit3d.deprecated import find_renamed

from .files import cut_box, label_volumes_ml, nifti_files
from .read import read_nifti, read_nifti_grid
from .writer import write_labels, write_map

__all__ = ["NiftiReader", "cut_box", "label_volumes_ml", "nifti_files", "read_nifti_grid", "read_nifti"]
__all__ += ["write_labels", "write_map"]


def __getattr__(name: str) -> Any:
    # monai and torch load where MONAI's reader is used; reading needs numpy and nibabel alone
    if name == "NiftiReader":
        from .reader import NiftiReader

        return NiftiReader
    return find_renamed(__name__, name)
