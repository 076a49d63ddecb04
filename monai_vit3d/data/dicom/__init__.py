"""DICOM series: found, read as volumes, answered with a DICOM SEG. The only room that imports pydicom and highdicom."""

from .reader import read_series
from .seg import write_dicom_seg
from .series import Series, find_series

__all__ = ["Series", "find_series", "read_series", "write_dicom_seg"]
