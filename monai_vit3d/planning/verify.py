"""Check the files of a labelled data set as its training will read them, and its cases against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.labels import MAX_LABEL_ROUNDING, MAX_LISTED
from monai_vit3d.data.nifti.read import count_nifti_volumes, read_nifti, read_nifti_volumes
from monai_vit3d.data.same_grid import SAME_PLACE_VOXELS, check_same_grid, corner_shift
from monai_vit3d.data.volume import Array, Grid, Volume

from .dataset import LabelledCase, LabelledDataset

MAX_CLASS_VALUE = 2**15 - 1


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a data set.

    Args:
        file: the file, or the data set's folder.
        severity: ``"error"``: it cannot be trained on; or ``"warning"``.
        text: what came, what is expected, what to do.
    """

    file: Path
    severity: str
    text: str


@dataclass
class CheckedCase:
    """One case as it was read.

    Args:
        case: of the data set.
        problems: of its files.
        channels: its volumes, on one grid; empty if one cannot be used.
        labels: (H, W, D) class values on that grid; None without, or if they cannot be used.
        counts: voxels of each class value.
        sha256: of each image file.
    """

    case: LabelledCase
    problems: list[Problem] = field(default_factory=list)
    channels: list[Volume] = field(default_factory=list)
    labels: Array | None = None
    counts: dict[int, int] = field(default_factory=dict)
    sha256: dict[Path, str] = field(default_factory=dict)

    def add(self, file: Path, text: str, severity: str = "error") -> None:
        """Add a problem; with test cases, on which nothing is trained, it is a warning."""
        self.problems.append(Problem(file, severity if self.case.section == "training" else "warning", text))


def check_case(dataset: LabelledDataset, case: LabelledCase) -> CheckedCase:
    """Read all files of a case, every byte, and check them by themselves and against each other."""
    checked = CheckedCase(case)
    channels = _read_channels(checked, dataset.channel_names)
    if case.label is None and case.section == "training":
        checked.add(case.images[0], f"no label of {case.name}. Give one, or put the case among those to test on.")
    grids = [volume.grid for volume in channels]
    if isinstance(case.label, Path):
        _read_labels(checked, case.label, dataset.class_names, grids[0] if grids else None)
    checked.channels = channels
    return checked


def _read_channels(checked: CheckedCase, names: Sequence[str]) -> list[Volume]:
    """Read one volume for each channel; none if one is missing, refused or elsewhere than the first."""
    files = checked.case.images
    if len(files) not in (1, len(names)):
        checked.add(
            files[0], f"{len(files)} files for {checked.case.name}; one for each of {', '.join(names)} is expected."
        )
        return []
    volumes: list[Volume] = []
    for file, name in zip(files, names):
        try:
            volumes += _read_file(file, name, names if len(files) == 1 else (name,), checked.case)
        except ImageError as error:
            checked.add(file, _without_path(error, file))
    for volume in volumes:
        checked.sha256.update({volume.path: volume.sha256[0]} if volume.sha256 else {})
        for text in volume.warnings:
            checked.add(volume.path, text, "warning")
        try:
            check_same_grid(volumes[0], volume)
        except ImageError as error:
            checked.add(volume.path, _without_path(error, volume.path))
    is_usable = len(volumes) == len(names) and not any(problem.severity == "error" for problem in checked.problems)
    return volumes if is_usable else []


def _read_file(file: Path, name: str, names: Sequence[str], case: LabelledCase) -> list[Volume]:
    """Read the volumes of a file, one for each name."""
    if not file.exists():
        raise ImageError(f"no such file; the {name} image of {case.name} is expected. Add it, or leave the case out.")
    count = count_nifti_volumes(file)
    if count != len(names):
        came = f"{count} volume{'s' if count > 1 else ''} for {case.name}"
        raise ImageError(f"{came}; {len(names)} ({', '.join(names)}) expected. Give a file of so many channels.")
    return read_nifti_volumes(file, hashed=True) if count > 1 else [read_nifti(file, hashed=True)]


def _read_labels(checked: CheckedCase, file: Path, classes: dict[int, str], grid: Grid | None) -> None:
    """Read class values onto ``checked``, if they are whole, known and on the grid of the images."""
    try:
        volume = _label_volume(file, checked.case)
    except ImageError as error:
        checked.add(file, _without_path(error, file))
        return
    labels, counts, fault = _whole_values(volume.voxels, classes)
    if not fault and grid is not None:
        fault = _grid_fault(volume.grid, grid)
    if fault:
        checked.add(file, fault)
        return
    checked.labels, checked.counts = labels, counts
    if not counts.keys() - {0}:
        checked.add(file, f"no voxel of {checked.case.name} is labelled. Check that this is right.", "warning")
    for text in volume.warnings:
        if text != "all voxels are 0":
            checked.add(file, text, "warning")


def _label_volume(file: Path, case: LabelledCase) -> Volume:
    if not file.exists():
        raise ImageError(f"no such file; the label map of {case.name} is expected. Add it, or leave the case out.")
    count = count_nifti_volumes(file)
    if count > 1:
        raise ImageError(
            f"4D labels of {count} volumes; one 3D map of class values is expected. Save the number of the class in "
            "each voxel."
        )
    return read_nifti(file, exact=True)


def _whole_values(voxels: Array, classes: dict[int, str]) -> tuple[Array, dict[int, int], str]:
    """Convert labels to whole numbers, count the voxels of each value, and say which are no class's."""
    rounded = np.rint(voxels)
    wrong = (np.abs(voxels - rounded) > MAX_LABEL_ROUNDING) | (rounded < 0) | (rounded > MAX_CLASS_VALUE)
    if wrong.any():
        values, voxels_of = np.unique(voxels[wrong], return_counts=True)
        return rounded, {}, _unknown(dict(zip(values.tolist(), voxels_of.tolist())), classes)
    labels = rounded.astype(np.int16)
    count = int(labels.max()) + 1
    # slab by slab: bincount makes 64 bits of each voxel
    totals = sum(np.bincount(slab.reshape(-1), minlength=count) for slab in labels)
    counts = {value: count for value, count in enumerate(np.asarray(totals).tolist()) if count}
    unknown = {value: count for value, count in counts.items() if value not in classes}
    return labels, counts, _unknown(unknown, classes) if unknown else ""


def _unknown(counts: Mapping[Any, int], classes: dict[int, str]) -> str:
    listed = ", ".join(f"{value:g} ({count} voxels)" for value, count in [*counts.items()][:MAX_LISTED])
    more = f" and {len(counts) - MAX_LISTED} other values" if len(counts) > MAX_LISTED else ""
    expected = ", ".join(f"{value} ({name})" for value, name in classes.items())
    return f"label {listed}{more}; {expected} are expected. Give these voxels the value of a class, or name it."


def _grid_fault(labels: Grid, image: Grid) -> str:
    """Describe how far the grids of labels and image are apart; "" if they are one, up to 0.1 voxel."""
    advice = "Resample the labels to the image's grid, by nearest neighbour."
    if labels.shape != image.shape:
        return f"labels of shape {labels.shape}, its image has {image.shape}; one grid is expected. {advice}"
    shift = corner_shift(image.affine_mm, labels.affine_mm, image.shape)
    if shift <= SAME_PLACE_VOXELS:
        return ""
    return f"labels up to {shift:.3g} voxels away from where their image lies; one affine is expected. {advice}"


def check_together(dataset: LabelledDataset, checked: Iterable[CheckedCase]) -> list[Problem]:
    """Check what only shows over all cases: values of classes, folds, subjects and copies.

    Args:
        dataset: the cases.
        checked: of each case, its volumes need not be kept.
    """
    cases = list(checked)
    return [*_class_problems(dataset, cases), *_fold_problems(dataset), *_copies(cases)]


def _class_problems(dataset: LabelledDataset, cases: list[CheckedCase]) -> Iterable[Problem]:
    if dataset.task == "regression":
        return
    values = sorted(dataset.class_names)
    if values != list(range(len(values))) or len(values) < 2:
        text = f"classes {', '.join(map(str, values))}; 0, 1 and so on without gaps are expected. Number them anew."
        yield Problem(dataset.root, "error", text)
    training = [checked for checked in cases if checked.case.section == "training"]
    if dataset.task == "segmentation":
        present = {value for checked in training for value in checked.counts}
        if not all(checked.counts for checked in training):
            return  # labels that could not be read may have what the others lack
    else:
        present = {int(checked.case.label) for checked in training if isinstance(checked.case.label, int)}
    for value, name in dataset.class_names.items():
        if value not in present and (value or dataset.task == "classification"):
            yield Problem(dataset.root, "warning", f"class {value} ({name}) is in no label. It cannot be learnt.")


def _fold_problems(dataset: LabelledDataset) -> Iterable[Problem]:
    training = dataset.section("training")
    without = [case for case in training if case.fold is None]
    if 0 < len(without) < len(training):
        text = f"{len(without)} of {len(training)} cases have no fold. Folds are made anew; give all cases one."
        yield Problem(dataset.root, "warning", text)
    folds: dict[str, LabelledCase] = {}
    for case in training:
        first = folds.setdefault(case.subject, case)
        if case.fold != first.fold and None not in (case.fold, first.fold):
            text = f"subject {case.subject} is in fold {case.fold}, and in fold {first.fold} by {first.name}"
            yield Problem(case.images[0], "error", f"{text}; one fold is expected. Put all its cases into one.")


def _copies(cases: list[CheckedCase]) -> Iterable[Problem]:
    """Find images of the same bytes: a case that is there twice would be trained on and validated with."""
    files: dict[str, list[tuple[Path, LabelledCase]]] = defaultdict(list)
    for checked in cases:
        for path, digest in checked.sha256.items():
            files[digest].append((path, checked.case))
    for (first, original), *others in files.values():
        for path, case in others:
            text = f"the same bytes as {first}; images that differ are expected. Remove one"
            folds = (original.fold, case.fold)
            if None not in folds and folds[0] != folds[1]:
                text += (
                    f": fold {folds[0]} has the one, fold {folds[1]} the other, so that one validates what it has seen"
                )
            yield Problem(path, "warning", f"{text}.")


def subjects_of_copies(cases: Iterable[CheckedCase]) -> dict[str, str]:
    """Find subjects who are one, as all images of a case of theirs are byte by byte those of another case.

    Args:
        cases: checked, of the training section and others.

    Returns:
        The first such subject by the name of each other one.
    """
    first: dict[tuple[str, ...], str] = {}
    same: dict[str, str] = {}
    for checked in cases:
        digests = tuple(sorted(checked.sha256.values()))
        subject = same.get(checked.case.subject, checked.case.subject)
        if len(digests) == len(checked.case.images) and (other := first.setdefault(digests, subject)) != subject:
            same = {name: other if one == subject else one for name, one in same.items()} | {subject: other}
    return same


def _without_path(error: ImageError, file: Path) -> str:
    return str(error).removeprefix(f"{file}: ")
