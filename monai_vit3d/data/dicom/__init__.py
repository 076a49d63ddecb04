"""Find DICOM series, read them as volumes, and write DICOM SEG. Only this package imports pydicom and highdicom."""

from .reader import VOXEL_UNITS, read_series
from .seg import write_dicom_seg
from .series import FolderScan, Series, find_series, scan_folder

__all__ = ["VOXEL_UNITS", "FolderScan", "Series", "find_series", "read_series", "scan_folder", "write_dicom_seg"]
