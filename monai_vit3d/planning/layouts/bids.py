"""BIDS: raw images by subject, and a derivative with ``*_dseg`` label maps (https://bids-specification.readthedocs.io)."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from pathlib import Path

from monai_vit3d.data.errors import DatasetError
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

from .common import build_dataset, class_names_beside, class_names_seen, is_nifti_name, modality_name, stem

logger = logging.getLogger(__name__)

_NOT_STRUCTURAL = {"func", "dwi", "fmap", "beh", "eeg", "meg", "ieeg", "nirs", "motion", "micr", "mrs"}
Session = tuple[str, str]  # sub-01 and ses-A, or "" without sessions


def is_bids(path: Path) -> bool:
    """Whether a folder is a BIDS data set with a derivative of label maps, or such a derivative in one."""
    return path.is_dir() and bool(_derivatives(path))


def read_bids(path: Path) -> LabelledDataset:
    """List a case for each session (or subject without sessions): its images are the channels, by their suffixes.

    An image's channel is its suffix and the entities beside subject and session, such as T1w or acq-low_CT. Those that
    half of the labelled sessions have, or more, are read. Sessions without a ``*_dseg`` are test cases.

    Raises:
        DatasetError: several derivatives have label maps, or a session has several.
    """
    derivatives = _derivatives(path)
    if len(derivatives) != 1:
        names = ", ".join(str(folder) for folder in derivatives) or "no derivative"
        raise DatasetError(f"{path}: {names} with *_dseg maps; one is expected. Give the path of one.")
    derived, root = derivatives[0], _raw_root(derivatives[0])
    labels = _label_maps(derived)
    images = _images(root)
    channels = _common_channels(images, labels)
    if not channels:
        raise DatasetError(f"{root}: no image of the sessions with label maps in sub-*/; check the files' names.")
    cases = []
    for session in sorted({*images, *labels}):
        name = "_".join(filter(None, session))
        folder = root.joinpath(*filter(None, session))
        held = images.get(session, {})
        if session not in labels and not set(channels) <= held.keys():
            continue  # neither labelled nor complete
        files = tuple(held.get(channel, folder / f"{name}_{channel}.nii.gz") for channel in channels)
        section = "training" if session in labels else "testing"
        cases.append(LabelledCase(name, files, labels.get(session), session[0], section=section))
    classes = class_names_beside(derived) or class_names_beside(root) or class_names_seen(labels.values())
    return build_dataset(root, "bids", "segmentation", cases, [*map(modality_name, channels)], classes)


def _derivatives(path: Path) -> list[Path]:
    """List the derivatives that have label maps: the folder itself, or those in its derivatives."""
    folders = [path] if _raw_root(path) != path else sorted((path / "derivatives").glob("*/"))
    return [folder for folder in folders if next(folder.glob("sub-*/**/*_dseg.nii*"), None)]


def _raw_root(path: Path) -> Path:
    """The raw data set that a derivative belongs to; the folder itself if it is not in a folder derivatives."""
    return path.parents[1] if path.parent.name == "derivatives" else path


def _session(path: Path) -> tuple[Session, str]:
    """Split a file's name into its session and the rest, the channel."""
    parts = stem(path).split("_")
    subject = next((part for part in parts if part.startswith("sub-")), "")
    session = next((part for part in parts if part.startswith("ses-")), "")
    return (subject, session), "_".join(part for part in parts if part not in (subject, session))


def _label_maps(derived: Path) -> dict[Session, Path]:
    labels: dict[Session, Path] = {}
    for path in sorted(derived.glob("sub-*/**/*_dseg.nii*")):
        session, _ = _session(path)
        if is_nifti_name(path.name) and labels.setdefault(session, path) != path:
            raise DatasetError(
                f"{path}: {labels[session].name} is of the same session; one *_dseg map is expected. Move one away."
            )
    return labels


def _images(root: Path) -> dict[Session, dict[str, Path]]:
    images: dict[Session, dict[str, Path]] = defaultdict(dict)
    for path in sorted(root.glob("sub-*/**/*.nii*")):
        session, channel = _session(path)
        if is_nifti_name(path.name) and path.parent.name not in _NOT_STRUCTURAL and session[0]:
            images[session][channel] = path
    return images


def _common_channels(images: dict[Session, dict[str, Path]], labels: dict[Session, Path]) -> list[str]:
    """Channels of half of the labelled sessions or more; a line is logged of the rarer ones."""
    counts = Counter(channel for session in labels for channel in images.get(session, {}))
    channels = sorted(channel for channel, count in counts.items() if 2 * count >= len(labels))
    if rare := sorted(counts.keys() - channels):
        logger.warning("%s: images of few sessions, which are not used", ", ".join(rare))
    return channels
