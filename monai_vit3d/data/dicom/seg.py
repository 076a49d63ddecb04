"""Write labels as a DICOM SEG."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_vit3d.data.errors import ImageError, UsageError, install_extra
from monai_vit3d.data.files import replacing
from monai_vit3d.data.volume import Array

from .headers import element, hush_pydicom
from .series import Series, describe_series
from .slices import Slice
from .stack import stack_slices

if TYPE_CHECKING:
    from pydicom import Dataset

# attributes that highdicom requires, even empty
_REQUIRED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def write_dicom_seg(
    labels: Array, series: Series, names: Mapping[int, str], path: str | Path, volume: int | None = None
) -> None:
    """Write labels as one DICOM SEG, of type BINARY, that refers to the images they were made from.

    Segments are numbered from 1 in the order of the label values and have the names; an empty segment is described,
    too. A value without a name, or with one that a SEG cannot hold (empty, above 64 characters, with a backslash), is
    called "label 2". A bundle has no codes for its classes, so each segment is coded as the general "Tissue" (SNOMED CT
    85756007), as 3D Slicer does by default. Patient and study are copied from the images, names and dates included: a
    SEG is part of the patient's study, and needs the same protection as the images.

    Args:
        labels: (columns, rows, slices) integers, on the grid of :func:`read_series`; 0 is background. Or (C, columns,
            rows, slices) masks that may overlap: mask c is label c + 1.
        series: the images; their headers are read again.
        names: label value to name.
        path: the file, written atomically.
        volume: as given to :func:`read_series`.

    Raises:
        ImageError: another shape than the series', images that a SEG cannot refer to, or highdicom is missing.
        UsageError: neither a label nor a name, so that there would be no segment.
    """
    slices, grid, _ = stack_slices(series, volume)
    labels = np.asarray(labels)
    if labels.shape[-3:] != grid.shape or labels.ndim not in (3, 4) or labels.dtype.kind not in "biu":
        raise ImageError(
            f"labels: {labels.dtype} {labels.shape}; expected integers {grid.shape}, "
            f"the grid of {describe_series(series)}."
        )
    ordered = _segment_names(labels, names)
    _check_references(slices, series)
    segments = _segments(labels, list(ordered))
    frames = [s.frame for s in slices]
    one_file = len({s.path for s in slices}) == 1  # only their order identifies its frames
    if one_file:
        segments, slices = segments[np.argsort(frames)], slices[:1]
    hush_pydicom()  # warnings quote the patient's data
    try:
        for plane in slices:
            _complete(plane.header, series, grid.spacing_mm[2])
        if one_file:
            _keep_frames(slices[0].header, sorted(frames))
        seg = _segmentation(segments, [s.header for s in slices], list(ordered.values()), series)
        if one_file:
            _refer_to_frames(seg, sorted(frames))
    except ImportError as error:
        raise ImageError(
            f"{describe_series(series)}: highdicom, which writes DICOM SEG, is not installed: {install_extra('dicom')}."
        ) from error
    except Exception as error:  # odd headers make highdicom and pydicom raise errors of any class
        why = error if isinstance(error, AttributeError) else type(error).__name__  # others may quote the patient too
        raise ImageError(
            f"{describe_series(series)}: no DICOM SEG can refer to these images ({why}). "
            "Write NIfTI, or export them again."
        ) from error
    with replacing(path, "wb") as file:
        seg.save_as(file)


def _segment_names(labels: Array, names: Mapping[int, str]) -> dict[int, str]:
    """Name each label value that occurs or has a name, in order."""
    present = range(1, len(labels) + 1) if labels.ndim == 4 else np.unique(labels[labels != 0]).tolist()
    values = sorted({*present, *(value for value in names if value)})
    if not values:
        raise UsageError("labels: no label is there and none has a name; a DICOM SEG has one segment or more.")
    return {value: _segment_name(names.get(value, ""), value) for value in values}


def _segment_name(name: str, value: int) -> str:
    fits = 0 < len(name.strip()) <= 64 and "\\" not in name and name.isprintable()
    return name if fits else f"label {value}"


def _segments(labels: Array, values: list[int]) -> Array:
    """Convert labels to segment numbers (slices, rows, columns); masks, to (slices, rows, columns, segments)."""
    if labels.ndim == 4:
        masks = np.zeros((*labels.shape[:0:-1], len(values)), np.uint8)
        for n, value in enumerate(values):
            if value <= len(labels):
                masks[..., n] = labels[value - 1].T != 0
        return masks
    segments = np.zeros(labels.shape[::-1], np.uint16)
    for n, value in enumerate(values, 1):
        segments[np.equal(labels.T, value)] = n
    return segments


def _keep_frames(header: Dataset, frames: list[int]) -> None:
    """Keep the frames of one volume of several in an image's header, in memory only, as highdicom requires."""
    header.PerFrameFunctionalGroupsSequence = [header.PerFrameFunctionalGroupsSequence[frame] for frame in frames]
    header.NumberOfFrames = len(frames)


def _refer_to_frames(seg: Dataset, frames: list[int]) -> None:
    """Number the frames that a SEG refers to by their order in the file, not among those that were kept."""
    sources = {  # one item may stand in several frames of the SEG
        id(source): source
        for group in seg.PerFrameFunctionalGroupsSequence
        for derivation in element(group, "DerivationImageSequence") or ()
        for source in derivation.SourceImageSequence
    }
    for source in sources.values():
        source.ReferencedFrameNumber = frames[int(source.ReferencedFrameNumber) - 1] + 1


def _check_references(slices: list[Slice], series: Series) -> None:
    """Refuse images that a SEG cannot refer to one by one."""
    images = {s.path: element(s.header, "SOPInstanceUID") for s in slices}
    why = ""
    if slices[0].tile is not None:
        why = "slices are tiles of a mosaic"
    elif not series.uid:
        why = "SeriesInstanceUID is missing"
    elif None in images.values() or len(set(images.values())) < len(images):
        why = "SOPInstanceUID is missing or the same in several"
    if why:
        raise ImageError(f"{describe_series(series)}: no DICOM SEG can refer to these images ({why}). Write NIfTI.")


def _complete(header: Dataset, series: Series, step_mm: float) -> None:
    """Add attributes that highdicom copies from an image and some exporters leave out; in memory only."""
    from pydicom.uid import generate_uid

    for tag in _REQUIRED:
        setattr(header, tag, element(header, tag) or "")
    header.SliceThickness = element(header, "SliceThickness") or f"{step_mm:.6g}"
    if element(header, "FrameOfReferenceUID") is None:  # the series' own, that no other image has
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=[series.uid, "frame of reference"])
    if element(header, "PerFrameFunctionalGroupsSequence"):
        _share_groups(header)


def _share_groups(header: Dataset) -> None:
    """Copy attributes that highdicom expects in the shared functional groups from the first frame's own groups."""
    from pydicom import Dataset

    first = header.PerFrameFunctionalGroupsSequence[0]
    if not element(header, "SharedFunctionalGroupsSequence"):
        header.SharedFunctionalGroupsSequence = [Dataset()]
    shared = header.SharedFunctionalGroupsSequence[0]
    for macro in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if not element(shared, macro) and element(first, macro):
            setattr(shared, macro, first[macro].value)


def _segmentation(segments: Array, sources: list[Dataset], names: list[str], series: Series) -> Any:
    """Build the SEG of segment numbers or masks, in the order of the sources or of the one source's frames."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    release = version("monai-vit3d")
    algorithm = hd.AlgorithmIdentificationSequence("monai_vit3d", codes.cid7162.ArtificialIntelligence, release)
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    described = [
        hd.seg.SegmentDescription(n, name, tissue, tissue, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm)
        for n, name in enumerate(names, 1)
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
