"""DICOM series: found, read as volumes, answered with a DICOM SEG. The only room that imports pydicom and highdicom."""

from .reader import VOXEL_UNITS, read_series
from .seg import write_dicom_seg
from .series import FolderScan, Series, find_series, scan_folder

__all__ = ["VOXEL_UNITS", "FolderScan", "Series", "find_series", "read_series", "scan_folder", "write_dicom_seg"]
