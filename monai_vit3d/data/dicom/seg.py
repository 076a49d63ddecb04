"""Labels as a DICOM SEG."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np

from ..errors import ImageError, UsageError
from ..files import replacing
from ..volume import Array
from .series import Series, shown
from .stack import stack_slices

if TYPE_CHECKING:
    from pydicom import Dataset

_TYPE_2 = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate")
_TYPE_2 += ("StudyTime", "ReferringPhysicianName")


def write_dicom_seg(labels: Array, series: Series, names: Mapping[int, str], path: str | Path) -> None:
    """Write labels as one DICOM SEG, of type BINARY, that refers to the images they were made from.

    Segments are numbered from 1 in the order of the label values and carry the names; one that is nowhere is described
    all the same. A bundle has no codes for its classes, so each segment is coded as the general "Tissue" (SNOMED CT
    85756007), as 3D Slicer does by default. Patient and study are copied from the images, names and dates included:
    a SEG is part of the patient's study. Whoever may not see the images may not see it either.

    Args:
        labels: (columns, rows, slices) integers, on the grid of :func:`read_series`; 0 is background.
        series: the images; their headers are read again.
        names: label value to name, at most 64 characters each.
        path: the file, whole or not there.

    Raises:
        ImageError: another shape than the series', images a SEG cannot refer to, or highdicom is not there.
        UsageError: no name, a name that is empty, too long or has a backslash, or a label without a name.
    """
    slices, grid, _ = stack_slices(series)
    labels = np.asarray(labels)
    if labels.shape != grid.shape or labels.dtype.kind not in "biu":
        raise ImageError(
            f"labels: {labels.dtype} {labels.shape}; integers {grid.shape} are needed, the grid of {shown(series)}."
        )
    segments = _segment_numbers(labels, names).T
    if len({s.path for s in slices}) == 1:  # frames of one file are told apart by their order in it alone
        segments = segments[np.argsort([s.frame for s in slices])]
        slices = slices[:1]
    try:
        with catch_warnings():
            simplefilter("ignore")  # they quote what the images say of the patient
            for plane in slices:
                _complete(plane.header, grid.spacing_mm[2])
            seg = _segmentation(np.ascontiguousarray(segments), [s.header for s in slices], names, series)
    except ImportError as error:
        raise ImageError(f"{shown(series)}: a DICOM SEG needs pip install monai-vit3d[dicom]") from error
    except Exception as error:  # what an odd header makes highdicom and pydicom raise is of no one class
        why = error if isinstance(error, AttributeError) else type(error).__name__  # others may quote the patient too
        raise ImageError(
            f"{shown(series)}: no DICOM SEG can refer to these images ({why}). Write NIfTI, or export them again."
        ) from error
    with replacing(path, "wb") as file:
        seg.save_as(file)


def _segment_numbers(labels: Array, names: Mapping[int, str]) -> Array:
    """1 for the smallest label value that has a name, and so on."""
    values = sorted(value for value in names if value)
    bad = [names[value] for value in values if not 0 < len(names[value].strip()) <= 64 or "\\" in names[value]]
    if not values or bad:
        raise UsageError(f"names={dict(names)!r}: one name or more of 1 to 64 characters without backslash are needed.")
    numbers = np.zeros(labels.shape, np.uint16)
    for number, value in enumerate(values, 1):
        numbers[labels == value] = number
    unnamed = np.unique(labels[(numbers == 0) & (labels != 0)])
    if unnamed.size:
        raise UsageError(f"labels: value {unnamed[0]} has no name; names has {values}. Add it, or set it to 0.")
    return numbers


def _complete(header: Dataset, step_mm: float) -> None:
    """Add what highdicom copies from an image and what those of some exporters lack; in memory only."""
    for tag in _TYPE_2:
        setattr(header, tag, header.get(tag) or "")
    header.SliceThickness = header.get("SliceThickness") or f"{step_mm:.6g}"


def _segmentation(segments: Array, sources: list[Dataset], names: Mapping[int, str], series: Series) -> Any:
    """The SEG of segment numbers (slices, rows, columns), in the order of the sources or of the one source's frames."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    release = version("monai-vit3d")
    algorithm = hd.AlgorithmIdentificationSequence("monai_vit3d", codes.cid7162.ArtificialIntelligence, release)
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    ordered = [names[value] for value in sorted(names) if value]
    described = [
        hd.seg.SegmentDescription(n, name, tissue, tissue, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm)
        for n, name in enumerate(ordered, 1)
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=segments,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=1000 + (series.number or 0),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="monai_vit3d",
        manufacturer_model_name="monai_vit3d",
        software_versions=release,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_description="labels made by a network",
        series_description="labels made by monai_vit3d",
        specific_character_set="ISO_IR 192",  # UTF-8: names of classes may need more than the images have
    )
