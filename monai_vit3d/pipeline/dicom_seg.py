"""Write a case's labels as a DICOM SEG beside the NIfTI file, without ever failing the case."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from monai_vit3d.data.dicom import Series, write_dicom_seg
from monai_vit3d.data.errors import Vit3dError
from monai_vit3d.data.volume import Array

logger = logging.getLogger(__name__)


def add_dicom_seg(
    labels: Array, series: Series, names: Mapping[int, str], path: Path, volume: int | None = None
) -> list[str]:
    """Write a DICOM SEG if one can be written.

    Args:
        labels: as for ``write_dicom_seg``.
        series: the images.
        names: label value to name.
        path: of the SEG. One of an earlier run is removed if no new one can be written: its labels are others.
        volume: which volume of the series was read.

    Returns:
        Warnings: why there is none.
    """
    try:
        write_dicom_seg(labels, series, {value: name for value, name in names.items() if value > 0}, path, volume)
    except Exception as error:  # the labels are written already; only the SEG is affected
        logger.debug("no DICOM SEG", exc_info=True)
        path.unlink(missing_ok=True)
        why = str(error) if isinstance(error, Vit3dError | OSError) else type(error).__name__
        return [f"labels are written as NIfTI only, not as DICOM SEG: {why}"]
    return []
