"""One case of a run: its images, where they lie, and where its outputs go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import without_suffix

if TYPE_CHECKING:
    from monai_vit3d.data.dicom import Series

# kind of an output: its suffix in a BIDS derivative (https://bids-specification.readthedocs.io, "Imaging derivatives")
KINDS = {
    **{"seg": "dseg", "prob": "probseg", "entropy": "entropy", "variance": "variance"},
    **{"embedding": "embedding", "tokens": "tokens", "pca": "pca", "similarity": "similarity"},
}
# kind of an output that each label has: its suffix in a BIDS derivative, and that of the file
LABEL_KINDS = {"split": ("mask", ".nii.gz"), "stl": ("mesh", ".stl"), "ply": ("mesh", ".ply")}
_SUFFIXES = {"embedding": ".npy"}  # of the kinds that are no images
_UNSETTLED = PurePosixPath()


@dataclass(frozen=True)
class Case:
    """One case, from the list that names it to the report.

    Args:
        images: absolute paths, one per channel; of a DICOM case, the folder.
        relative: path below the folder that all inputs share, or the name that a list gives; of one of several DICOM
            series in a folder, with the series' name at its end. Empty until all inputs are known.
        bids: it comes from a BIDS data set, and its outputs are named as BIDS derivatives.
        dicom: its image is a folder with DICOM files directly in it.
        channels: what a list calls its images, such as ``flair`` of a column ``image_flair``; may be empty.
        series: which series of the DICOM folder; None where the folder could not be searched, which the run reports.
        index: its place among all cases, from 0, the same in every shard.
        seg: whether the labels of a DICOM series are written as a DICOM SEG, too.
        listed: a CSV or JSON list names it.
        named_by: the path that names it, of files that are channels; None is the first image's.
        mask: a file that is above 0 inside the skull or the body, as a list names it; its volume goes with the labels'.
    """

    images: tuple[Path, ...]
    relative: PurePosixPath = _UNSETTLED
    bids: bool = False
    dicom: bool = False
    channels: tuple[str, ...] = ()
    series: Series | None = None
    index: int = 0
    seg: bool = True
    listed: bool = field(default=False, compare=False)  # where a case was named is no part of what it is
    named_by: Path | None = None
    mask: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Path of its outputs below OUT, without suffix, ``/`` between folders."""
        relative = self.relative.as_posix()
        return relative if self.dicom else without_suffix(relative)

    @property
    def source(self) -> str:
        """Its images, as one printable line."""
        return " + ".join(map(printable, self.images))

    def path(self, kind: str) -> PurePosixPath:
        """Path of an output below OUT: ``NAME_seg.nii.gz``, or ``sub-01_desc-T1w_dseg.nii.gz`` in BIDS.

        Args:
            kind: one of ``KINDS``, or of a label as :func:`label_kind` writes it: ``NAME_seg-LABEL.nii.gz``, or
                ``sub-01_label-LABEL_desc-T1w_mask.nii.gz``.
        """
        kind, _, label = kind.partition(":")
        if label:
            return self._label_path(kind, label)
        name, suffix = self.name, _SUFFIXES.get(kind, ".nii.gz")
        if not self.bids:
            return PurePosixPath(f"{name}_{kind}{suffix}")
        path = PurePosixPath(name)
        return path.with_name(f"{_with_description(path.name)}_{KINDS[kind]}{suffix}")

    def _label_path(self, kind: str, label: str) -> PurePosixPath:
        bids, suffix = LABEL_KINDS[kind]
        if not self.bids:
            return PurePosixPath(f"{self.name}_seg-{label}{suffix}")
        path = PurePosixPath(self.name)
        entities = _with_description(path.name).split("_")
        place = next((i for i, entity in enumerate(entities) if entity.startswith("desc-")), len(entities))
        entities.insert(place, f"label-{label.replace('_', '')}")  # BIDS has letters and digits there
        return path.with_name(f"{'_'.join(entities)}_{bids}{suffix}")

    def paths(self, kinds: Collection[str]) -> list[PurePosixPath]:
        """Paths of its outputs below OUT; the labels of a DICOM series also as a DICOM SEG."""
        paths = [self.path(kind) for kind in kinds]
        return [*paths, self.dicom_seg] if self.dicom and self.seg and "seg" in kinds else paths

    @property
    def dicom_seg(self) -> PurePosixPath:
        """Path of a series' DICOM SEG below OUT."""
        return PurePosixPath(f"{self.name}_seg.dcm")

    @property
    def picture(self) -> PurePosixPath:
        """Path of the picture of its labels below OUT."""
        return PurePosixPath("qc", f"{self.name}.png")


def label_kind(kind: str, label: str) -> str:
    """Name the output of a kind that a label has.

    Args:
        kind: one of ``LABEL_KINDS``.
        label: its name as files have it.
    """
    return f"{kind}:{label}"


def _with_description(stem: str) -> str:
    """Rewrite ``sub-01_acq-x_T1w`` as ``sub-01_acq-x_desc-T1w``; ``desc-a``, allowed only once, as ``desc-aT1w``."""
    *entities, suffix = stem.split("_")
    if not entities or "-" in suffix:
        return stem
    description = "".join(entity[5:] for entity in entities if entity.startswith("desc-"))
    return "_".join([*(e for e in entities if not e.startswith("desc-")), f"desc-{description}{suffix}"])
