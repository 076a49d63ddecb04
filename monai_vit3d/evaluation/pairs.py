"""Pair the files of two folders: predictions and labels, by the names that data sets and tools give them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import reader_for, without_suffix

# the last word of a label map's name, in predictions of this package, BIDS, MONAI, ITK-SNAP, 3D Slicer, BraTS
_LABEL_WORD = re.compile(r"(?<=.)[-_.](seg|dseg|segmentation|pred|prediction|trans|labels?|labelmap|mask|gt)", re.I)
_OTHER_MAP = re.compile(r".*_(entropy|variance|prob|probs|probabilities|probseg)", re.I)  # beside the predicted labels
_CHANNEL = re.compile(r"_\d{4}")  # of nnU-Net's images
_BIDS = re.compile(r"sub-[^_]+(_ses-[^_]+)?")
_LISTED = 5  # names in a message


@dataclass(frozen=True)
class EvaluationCase:
    """A prediction and what it is scored against.

    Args:
        name: unique among the cases.
        prediction: label map that is scored.
        label: label map that is right.
        image: shown on the page under both; None shows the labels alone.
        subject: cases of one subject are drawn together for intervals.
    """

    name: str
    prediction: Path
    label: Path
    image: Path | None = None
    subject: str = ""


class Pairing(NamedTuple):
    """The cases of two folders, and a sentence for what has no partner."""

    cases: list[EvaluationCase]
    notes: list[str]


def pair_files(predictions: str | Path, labels: str | Path, images: str | Path | None = None) -> Pairing:
    """Pair label maps: ``NAME_seg.nii.gz``, ``NAME_dseg.nii.gz``, ``NAME.nii.gz`` and such with labels of any of these.

    BIDS files are paired by subject and session where their names differ otherwise.

    Args:
        predictions: the folder with predicted label maps; other maps in it, such as entropy, are passed over.
        labels: the folder with labels.
        images: the folder with images, ``NAME.nii.gz`` or ``NAME_0000.nii.gz``.

    Raises:
        UsageError: a folder that is not there or has no images, two files of one name, or no common names.
    """
    found = [_images_below(folder) for folder in (predictions, labels)]
    for rule in (case_name, _bids_name, _name_without_channel):
        predicted, labelled = (_by_name(files, rule) for files in found)
        names = [name for name in labelled if name in predicted]
        if names:
            break
    else:
        raise UsageError(
            f"{printable(predictions)} and {printable(labels)}: no common names; {_some(predicted)} in the first, "
            f"{_some(labelled)} in the second. Predictions are named as their labels, maybe with _seg."
        )
    shown = {} if images is None else _by_name(_images_below(images), lambda path: _CHANNEL.sub("", rule(path)), False)
    cases = [EvaluationCase(name, predicted[name], labelled[name], shown.get(name), name) for name in names]
    missing, extra = set(labelled) - set(predicted), set(predicted) - set(labelled)
    notes = [f"labels without a prediction ({len(missing)}): {_some(missing)}"] if missing else []
    notes += [f"predictions without a label ({len(extra)}): {_some(extra)}"] if extra else []
    return Pairing(cases, notes)


def case_name(path: Path) -> str:
    """Name the case of a label map: its file name without suffix and without a last word such as ``_seg``."""
    stem = without_suffix(path.name)
    return _without_end(_LABEL_WORD, stem)


def predicted_files(folder: str | Path) -> dict[str, Path]:
    """List the label maps below a folder by the names of their cases.

    Raises:
        UsageError: as :func:`pair_files`.
    """
    return _by_name(_images_below(folder), case_name)


def _name_without_channel(path: Path) -> str:
    """Name the case of a map that was predicted of nnU-Net's ``NAME_0000.nii.gz``."""
    return re.sub(rf"{_CHANNEL.pattern}\Z", "", case_name(path))


def _bids_name(path: Path) -> str:
    match = _BIDS.match(path.name)
    return match[0] if match else case_name(path)


def _without_end(pattern: re.Pattern[str], stem: str) -> str:
    match = re.search(rf"(?:{pattern.pattern})\Z", stem, pattern.flags)
    return stem[: match.start()] if match else stem


def _images_below(folder: str | Path) -> list[Path]:
    """List the images below a folder, hidden ones and maps that hold no labels left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{printable(folder)}: no such folder. Give the folder that holds the files.")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and reader_for(path)
        and not _OTHER_MAP.fullmatch(without_suffix(path.name))
    ]
    if not files:
        raise UsageError(f"{printable(folder)}: no images, such as .nii.gz, in it. Give the folder that holds them.")
    return files


def _by_name(files: Sequence[Path], rule: Callable[[Path], str], once: bool = True) -> dict[str, Path]:
    """Key files by a rule; of several with one name the first, unless that is an error."""
    named: dict[str, Path] = {}
    for path in files:
        first = named.setdefault(rule(path), path)
        if first is not path and once:
            raise UsageError(
                f"{printable(first)} and {printable(path)}: two files of one case, {printable(rule(path))}. Leave one "
                "for each case in the folder."
            )
    return named


def _some(names: Mapping[str, Path] | set[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(map(printable, ordered[:_LISTED])) + more
