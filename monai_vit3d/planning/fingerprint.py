"""Measure labelled data: what a plan for a training is made from (after nnU-Net's data set fingerprint)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_vit3d.data.class_sides import left_right_pairs
from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.volume import Array

from .channel_modality import guess_modality
from .dataset import LabelledDataset
from .verify import CheckedCase

SAMPLED_VOXELS = 10_000  # of a case and channel
PERCENTILES = (0.5, 5, 50, 95, 99.5)
SIZE_PERCENTILES = (10, 50, 90)
CONSTANT_BACKGROUND = 0.25  # of the voxels being 0: nnU-Net's threshold for a mask of the voxels that are not
WORLD_AXES = ("RL", "AP", "SI")  # of the patient, in the order in which a fingerprint has them


@dataclass(frozen=True)
class CaseMeasures:
    """The measures of one case.

    Args:
        spacing_mm: along R, A and S, as nearly as the axes run.
        shape: voxels along R, A and S.
        voxel_ml: volume of one voxel.
        zero_shares: of each channel, the share of voxels that are 0.
        ranges: of each channel, its smallest and largest value.
        samples: of each channel, values in the labelled voxels, or in those that are no constant background.
        counts: voxels of each class.
        components: voxels of each connected part of each class but the background.
    """

    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    voxel_ml: float
    zero_shares: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...]
    samples: tuple[Array, ...]
    counts: Mapping[int, int]
    components: Mapping[int, list[int]]


def measure_case(checked: CheckedCase) -> CaseMeasures:
    """Measure a case that was read; how its axes are stored does not matter.

    Args:
        checked: with channels.
    """
    grid = checked.channels[0].grid
    order, signs = _ras_axes(axis_letters(grid.affine_mm))
    channels = [np.transpose(volume.voxels, order)[signs] for volume in checked.channels]
    labels = None if checked.labels is None else np.transpose(checked.labels, order)[signs]
    zero_shares = tuple(1 - np.count_nonzero(channel) / channel.size for channel in channels)
    return CaseMeasures(
        spacing_mm=tuple(grid.spacing_mm[axis] for axis in order),
        shape=tuple(grid.shape[axis] for axis in order),
        voxel_ml=grid.voxel_ml,
        zero_shares=zero_shares,
        ranges=tuple((float(channel.min()), float(channel.max())) for channel in channels),
        samples=tuple(_sample(channel, labels, share) for channel, share in zip(channels, zero_shares)),
        counts=checked.counts,
        components={} if labels is None else _components(labels, [value for value in checked.counts if value]),
    )


def _ras_axes(letters: str) -> tuple[list[int], tuple[slice, ...]]:
    """Order of an array's axes, and which to flip, so that they run to the right, front and top."""
    order = [next(i for i, letter in enumerate(letters) if letter in world) for world in WORLD_AXES]
    return order, tuple(slice(None, None, 1 if letters[axis] in "RAS" else -1) for axis in order)


def _sample(channel: Array, labels: Array | None, zero_share: float) -> Array:
    """Take values of labelled voxels, evenly spread over them; of all without labels, but for a background of 0."""
    if labels is not None:
        mask = labels > 0
    elif zero_share >= CONSTANT_BACKGROUND:
        mask = channel != 0
    else:
        mask = np.ones(channel.shape, bool)
    places = np.flatnonzero(mask)
    if len(places) > SAMPLED_VOXELS:
        places = places[np.linspace(0, len(places) - 1, SAMPLED_VOXELS).astype(int)]
    return channel[np.unravel_index(places, channel.shape)]


def _components(labels: Array, values: Sequence[int]) -> dict[int, list[int]]:
    """Count the voxels of each part that is connected by faces, edges or corners."""
    from scipy.ndimage import find_objects, label

    boxes = find_objects(labels)
    sizes = {}
    for value in values:
        parts, _ = label(labels[boxes[value - 1]] == value, np.ones((3, 3, 3)))
        sizes[value] = sorted(np.bincount(parts.reshape(-1))[1:].tolist())
    return sizes


def summarize_cases(dataset: LabelledDataset, cases: Sequence[CaseMeasures]) -> dict[str, Any]:
    """Summarise the measures of training cases.

    Args:
        dataset: whose names the channels and classes get.
        cases: one or more.

    Returns:
        What JSON can hold: ``cases``; ``spacing_mm`` and ``shape`` by percentile, along R, A and S; ``anisotropy`` of
        the median spacing; ``channels`` with a guess of the modality, and mean, std and percentiles of the labelled
        voxels; ``background_is_constant``, of all channels; ``classes`` by value with their share of all voxels, how
        many cases have them, and medians over these cases of the number of connected parts, of a part's volume and
        of all of the class; ``left_right_pairs`` of class names. A regression has ``target`` instead of classes.
    """
    spacing = _by_percentile([case.spacing_mm for case in cases])
    channels = [_channel(name, i, cases) for i, name in enumerate(dataset.channel_names)]
    return {
        "task": dataset.task,
        "cases": len(cases),
        "spacing_mm": spacing,
        "shape": _by_percentile([case.shape for case in cases]),
        "anisotropy": _short(max(spacing["50"]) / min(spacing["50"])),
        "channels": channels,
        "background_is_constant": all(channel["background_is_constant"] for channel in channels),
        **_targets(dataset, cases),
    }


def _by_percentile(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    rows = np.percentile(np.array(values, float), SIZE_PERCENTILES, axis=0)
    return {f"{percent:g}": [_short(value) for value in row] for percent, row in zip(SIZE_PERCENTILES, rows)}


def _channel(name: str, index: int, cases: Sequence[CaseMeasures]) -> dict[str, Any]:
    values = np.concatenate([case.samples[index] for case in cases]).astype(np.float64)
    if not values.size:  # no voxel is labelled, and what is not 0 is nothing
        values = np.zeros(1)
    zero_share = float(np.median([case.zero_shares[index] for case in cases]))
    low, high = np.median([case.ranges[index] for case in cases], axis=0)
    return {
        "name": name,
        "modality": guess_modality(name, low, high),
        "mean": _short(values.mean()),
        "std": _short(values.std()),
        "percentiles": {f"{p:g}": _short(value) for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES))},
        "background_is_constant": zero_share >= CONSTANT_BACKGROUND,
    }


def _targets(dataset: LabelledDataset, cases: Sequence[CaseMeasures]) -> dict[str, Any]:
    labels = [case.label for case in dataset.section("training")]
    if dataset.task == "regression":
        values = np.array([label for label in labels if label is not None], float)
        numbers = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        return {"target": {key: _short(value) for key, value in numbers.items()}}
    if dataset.task == "classification":
        classes = {
            str(value): {"name": name, "cases": labels.count(value)} for value, name in dataset.class_names.items()
        }
        return {"classes": classes, "left_right_pairs": left_right_pairs([*dataset.class_names.values()])}
    named = {value: name for value, name in dataset.class_names.items() if value}
    voxels = sum(sum(case.counts.values()) for case in cases)
    return {
        "classes": {str(value): _class(value, name, cases, voxels) for value, name in named.items()},
        "left_right_pairs": left_right_pairs([*named.values()]),
    }


def _class(value: int, name: str, cases: Sequence[CaseMeasures], voxels: int) -> dict[str, Any]:
    having = [case for case in cases if value in case.counts]
    parts = [len(case.components[value]) for case in having]
    part_ml = [size * case.voxel_ml for case in having for size in case.components[value]]
    volumes_ml = [case.counts[value] * case.voxel_ml for case in having]
    return {
        "name": name,
        "voxel_share": _short(sum(case.counts[value] for case in having) / max(voxels, 1)),
        "cases": len(having),
        "components": _median(parts),
        "component_ml": _median(part_ml),
        "volume_ml": _median(volumes_ml),
    }


def _median(values: Sequence[float]) -> float:
    return _short(np.median(values)) if values else 0.0


def _short(value: float) -> float:
    """Round to six digits: more are noise, and the file is read by people."""
    return float(f"{value:.6g}")
