"""The strict NIfTI reader as a MONAI reader, for bundles and transforms."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.data.utils import is_supported_format
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_vit3d.data.channel_files import check_channels
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.limits import MAX_VOXELS
from monai_vit3d.data.same_grid import check_same_grid
from monai_vit3d.data.volume import Array, Volume

from .read import count_nifti_volumes, read_nifti, read_nifti_volumes

logger = logging.getLogger(__name__)


class NiftiReader(ImageReader):
    """Read NIfTI files through :func:`read_nifti`; for ``LoadImage(d)`` in Python or in a bundle's config.

    Several files are channels of one image, stacked along a new first axis; they must lie on one grid. With
    ``channels``, one 4D file may hold them, too. The metadata hold all that MONAI's spatial transforms and their
    inverses need, and under ``"warnings"`` a line for each oddity.

    Args:
        volume: which one of 4D files, from 0.
        channels: number of channels that each image must have: so many 3D files, or one file of so many volumes. None
            takes any number of 3D files.
        max_voxels: larger images are refused.
        labels: the files are label maps: voxels that are not finite are refused instead of set to a finite value.

    Example:
        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged("image", reader=NiftiReader(), ensure_channel_first=True)

        or ``"reader": {"_target_": "monai_vit3d.data.NiftiReader"}``
    """

    def __init__(
        self,
        volume: int | None = None,
        max_voxels: int = MAX_VOXELS,
        labels: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if channels is not None and (type(channels) is not int or channels < 1 or volume is not None):
            raise UsageError(
                f"channels={channels!r}, volume={volume!r}; a whole number of 1 or more is expected for channels, and "
                "no volume beside it, as all volumes of a 4D file are channels then."
            )
        self.volume, self.max_voxels, self.labels, self.channels = volume, max_voxels, labels, channels
        self._logged: set[tuple[Path, str]] = set()  # later epochs do not repeat the warnings of the first

    def verify_suffix(self, filename: Any) -> bool:
        """Return whether all names end with ``.nii`` or ``.nii.gz``."""
        return is_supported_format(filename, ["nii", "nii.gz"])

    def read(self, data: Any, **kwargs: Any) -> tuple[Path, ...]:
        """Keep the paths.

        On an error in ``read``, ``LoadImage`` tries MONAI's other readers, which accept files that are refused here; an
        error in ``get_data`` it raises. So files are opened there.

        Args:
            data: one path or several.
            kwargs: not used.
        """
        return tuple(Path(p) for p in ensure_tuple(data))

    def get_data(self, img: Sequence[Path]) -> tuple[Array, dict[str, Any]]:
        """Read the files.

        Args:
            img: from :meth:`read`.

        Returns:
            float32 (H, W, D), or (C, H, W, D) for C channels above 1, and the metadata.

        Raises:
            ImageError: a file is refused, the files do not lie on one grid, or are not ``channels``.
        """
        volumes = self._volumes(img)
        first = volumes[0]
        for other in volumes[1:]:
            check_same_grid(first, other)
        all_warnings = [(v.path, text) for v in volumes for text in v.warnings]
        for path, text in all_warnings:
            if (path, text) not in self._logged:
                logger.warning("%s: %s", path, text)
        self._logged.update(all_warnings)
        # one text, as lists of different lengths cannot be collated
        warnings = "\n".join(text if len(volumes) == 1 else f"{path}: {text}" for path, text in all_warnings)
        voxels, meta = as_monai(volumes)
        return voxels, {**meta, "warnings": warnings}

    def _volumes(self, paths: Sequence[Path]) -> list[Volume]:
        """Read a volume for each channel."""
        if self.channels is not None:
            check_channels(paths, self.channels, count_nifti_volumes)
            if len(paths) == 1:
                return read_nifti_volumes(paths[0], self.max_voxels, self.labels)
        return [read_nifti(path, self.volume, self.max_voxels, self.labels) for path in paths]


def as_monai(volumes: Sequence[Volume]) -> tuple[Array, dict[str, Any]]:
    """Build the return value of a MONAI reader's ``get_data`` for images on one grid, one for each channel.

    Returns:
        float32 (H, W, D), the volume's own voxels, or (C, H, W, D) of C volumes above 1, and the metadata.
    """
    grid, is_single = volumes[0].grid, len(volumes) == 1
    meta: dict[str, Any] = {
        MetaKeys.AFFINE: grid.affine_mm.copy(),
        MetaKeys.ORIGINAL_AFFINE: grid.affine_mm.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(grid.shape),
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if is_single else 0,  # NaN is MONAI's "no channel"
        MetaKeys.SPACE: SpaceKeys.RAS,
    }
    return volumes[0].voxels if is_single else np.stack([v.voxels for v in volumes]), meta
