"""BIDS: raw images by subject, and a derivative with ``*_dseg`` label maps (https://bids-specification.readthedocs.io)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from monai_vit3d.data.errors import DatasetError
from monai_vit3d.data.label_names import is_label_name
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

from .common import build_dataset, class_names_beside, class_names_seen, is_nifti_name, modality_name, most_have, stem

logger = logging.getLogger(__name__)

_NOT_STRUCTURAL = {"func", "dwi", "fmap", "beh", "eeg", "meg", "ieeg", "nirs", "motion", "micr", "mrs"}
Scan = tuple[str, str, str]  # sub-01, ses-A and run-1, or "" for what the name has not


def is_bids(path: Path) -> bool:
    """Return whether a folder is a BIDS data set with a derivative of label maps, or such a derivative in one."""
    return path.is_dir() and bool(_derivatives(path))


def read_bids(path: Path) -> LabelledDataset:
    """List a case for each label map, and for each session without: the session's images are the channels.

    An image's channel is its suffix and the entities beside subject, session and run, such as T1w or acq-low_CT. Those
    that half of the labelled sessions have, or more, are read. Of several runs the one of the label map's name is
    taken, or else the first. Sessions without a ``*_dseg`` are test cases.

    Raises:
        DatasetError: several derivatives have label maps, or a session (or a run of one) has several.
    """
    derivatives = _derivatives(path)
    if len(derivatives) != 1:
        names = ", ".join(str(folder) for folder in derivatives) or "no derivative"
        raise DatasetError(f"{path}: {names} with *_dseg maps; one is expected. Give the path of one.")
    derived, root = derivatives[0], _raw_root(derivatives[0])
    labels = _label_maps(derived)
    images = _images(root, labels)
    channels = most_have({scan: images.get(scan, {}) for scan in labels}, "sessions")
    if not channels:
        raise DatasetError(f"{root}: no image of the sessions with label maps in sub-*/; check the files' names.")
    cases = []
    for scan in sorted({*images, *labels}):
        name = "_".join(filter(None, scan))
        folder = root.joinpath(*filter(None, scan[:2]))
        held = images.get(scan, {})
        if scan not in labels and not set(channels) <= held.keys():
            continue  # neither labelled nor complete
        files = tuple(held.get(channel, folder / f"{name}_{channel}.nii.gz") for channel in channels)
        section = "training" if scan in labels else "testing"
        cases.append(LabelledCase(name, files, labels.get(scan), scan[0], section=section))
    classes = class_names_beside(derived) or class_names_beside(root) or class_names_seen(labels.values())
    return build_dataset(root, "bids", "segmentation", cases, [*map(modality_name, channels)], classes)


def _derivatives(path: Path) -> list[Path]:
    """List the derivatives that have label maps: the folder itself, or those in its derivatives."""
    folders = [path] if _raw_root(path) != path else sorted((path / "derivatives").glob("*/"))
    return [folder for folder in folders if next(folder.glob("sub-*/**/*_dseg.nii*"), None)]


def _raw_root(path: Path) -> Path:
    """Return the raw data set that a derivative belongs to; the folder itself if it is not in a folder derivatives."""
    return path.parents[1] if path.parent.name == "derivatives" else path


def _scan(path: Path) -> tuple[Scan, str]:
    """Split a file's name into subject, session and run, and the rest, the channel."""
    parts = stem(path).split("_")
    subject, session, run = (
        next((part for part in parts if part.startswith(entity)), "") for entity in ("sub-", "ses-", "run-")
    )
    return (subject, session, run), "_".join(part for part in parts if part not in (subject, session, run))


def _label_maps(derived: Path) -> dict[Scan, Path]:
    labels: dict[Scan, Path] = {}
    for path in sorted(derived.glob("sub-*/**/*_dseg.nii*")):
        scan, _ = _scan(path)
        if is_nifti_name(path.name) and labels.setdefault(scan, path) != path:
            raise DatasetError(
                f"{path}: {labels[scan].name} is of the same session; one *_dseg map is expected. Move one away."
            )
    return labels


def _images(root: Path, labels: Mapping[Scan, Path]) -> dict[Scan, dict[str, Path]]:
    """List the images of each label map's scan, and of each session without label maps, by channel."""
    runs: dict[tuple[str, str], dict[str, dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(root.glob("sub-*/**/*.nii*")):
        (subject, session, run), channel = _scan(path)
        is_image = is_nifti_name(path.name) and not is_label_name(stem(path))
        if is_image and path.parent.name not in _NOT_STRUCTURAL and subject:
            runs[subject, session][channel][run] = path
    unlabelled = runs.keys() - {scan[:2] for scan in labels}
    scans = [*labels, *((*session, "") for session in unlabelled)]
    several = {channel for scan in scans if not scan[2] for channel, of in runs[scan[:2]].items() if len(of) > 1}
    if several:
        logger.warning("%s: several runs in a session, of which the first is taken", ", ".join(sorted(several)))
    return {scan: {channel: _run_of(of, scan[2]) for channel, of in runs[scan[:2]].items()} for scan in scans}


def _run_of(images: Mapping[str, Path], run: str) -> Path:
    """Return the image of a run; where there is none of that, the one without a run, or else the first."""
    return images.get(run) or images[min(images, key=lambda name: (len(name), name))]
