"""Measure an image, a network's input and labels: the same quantities for training data and for new cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.volume import Array, Grid

from .stats import LabelSummary

if TYPE_CHECKING:
    from torch import Tensor

AXES = ("left-right", "back-front", "bottom-top")  # of the patient
_AXIS_OF_LETTER = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
QUANTILES = (5, 25, 50, 75, 95)  # in percent
IMAGE_SAMPLE_VOXELS = 2**21  # voxels of an image that are sampled for its statistics
MIN_LABEL_SAMPLE = 10  # voxels of a label in the sample, below which their values are not measured
MAX_BOXES = 2**12  # largest label value for which one pass finds the boxes of all labels
MIN_PIECE_SHARE = 0.05  # of a label's voxels, from which a connected part counts as a piece

Values = dict[str, Any]  # numbers by name, nested


def measure_grid(grid: Grid) -> Values:
    """Measure field of view and spacing in mm along the patient's axes; each voxel axis counts for the nearest one."""
    order = [_AXIS_OF_LETTER[letter] for letter in axis_letters(grid.affine_mm)]
    spacing = {AXES[axis]: mm for axis, mm in zip(order, grid.spacing_mm)}
    extent = {AXES[axis]: n * mm for axis, n, mm in zip(order, grid.shape, grid.spacing_mm)}
    return {
        "field_of_view_mm": {axis: extent[axis] for axis in AXES},
        "spacing_mm": {axis: spacing[axis] for axis in AXES},
    }


def measure_input(image: Tensor) -> Values:
    """Measure quantiles of the network's input, all channels together.

    Args:
        image: (C, h, w, d), after the bundle's preprocessing.
    """
    step = _step(image.shape[1:])
    sample = image[:, ::step, ::step, ::step].float().cpu().numpy()
    values = np.quantile(sample, [q / 100 for q in QUANTILES])
    return {"input": {f"{q}%": float(value) for q, value in zip(QUANTILES, values)}}


def measure_labels(labels: Array, voxels: Array, stats: Sequence[LabelSummary], pieces: bool = True) -> Values:
    """Measure volume, border voxels and connected pieces of each label, and the image values under it.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) masks; channel c is label c + 1.
        voxels: (H, W, D) image.
        stats: of the labels, as :func:`~monai_vit3d.pipeline.stats.label_stats` gives them.
        pieces: whether to count connected pieces, which takes longest.
    """
    step = _step(voxels.shape)
    sample = (slice(None, None, step),) * 3
    values, within = voxels[sample], labels[(Ellipsis,) + sample]
    constant = _largest_share_of_one_value(within, values)
    border = _border_voxels(labels)
    by_label: Values = {}
    for summary in stats:
        by_label[str(summary.label)] = measured = {"present": float(summary.voxels > 0)}
        if summary.voxels:
            measured |= {"volume_ml": summary.volume_ml, "border_voxels": float(border.get(summary.label, 0))}
            if summary.label in constant:
                measured["share_of_one_value"] = constant[summary.label]
    if pieces:
        for value, mask in _masks(labels, [summary.label for summary in stats if summary.voxels]):
            by_label[str(value)]["pieces"] = float(_count_pieces(mask))
    return {"labels": by_label, **_foreground_share(within, values)}


def _step(shape: Sequence[int]) -> int:
    return max(1, math.ceil((math.prod(shape) / IMAGE_SAMPLE_VOXELS) ** (1 / 3)))


def _largest_share_of_one_value(labels: Array, voxels: Array) -> dict[int, float]:
    """For each label, return the share of its voxels with their most frequent image value."""
    where = np.nonzero(labels)
    of = labels[where].astype(np.int64) if labels.ndim == 3 else where[0] + 1
    values = voxels[where[-3:]]
    order = np.lexsort((values, of))
    of, values = of[order], values[order]
    if not len(of):
        return {}
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(of) != 0) | (np.diff(values) != 0)]))
    lengths = np.diff(np.append(starts, len(of)))
    shares: dict[int, float] = {}
    for value, count in zip(*np.unique(of, return_counts=True)):
        if count >= MIN_LABEL_SAMPLE:
            shares[int(value)] = float(lengths[of[starts] == value].max() / count)
    return shares


def _foreground_share(labels: Array, voxels: Array) -> Values:
    """Measure the share of the image's foreground that has a label; empty for a constant image."""
    level = _otsu(voxels)
    if level is None:
        return {}
    labelled = labels != 0 if labels.ndim == 3 else (labels != 0).any(axis=0)
    inside = voxels > level
    return {"share_of_foreground": float((labelled & inside).sum() / inside.sum())}


def _otsu(voxels: Array) -> float | None:
    """Return Otsu's threshold ("A threshold selection method from gray-level histograms", 1979); None if constant."""
    counts, edges = np.histogram(voxels, 256)
    if edges[0] == edges[-1] or voxels.min() == voxels.max():
        return None
    middles = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    sums = counts * middles
    mean_below = np.cumsum(sums) / np.maximum(below, 1)
    mean_above = np.cumsum(sums[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(edges[1 + int(between.argmax())])


def _border_voxels(labels: Array) -> Mapping[int, int]:
    """Count the voxels of each label on the image's faces."""
    counts: dict[int, int] = {}
    masks = [(c + 1, mask != 0) for c, mask in enumerate(labels)] if labels.ndim == 4 else [(None, labels)]
    for value, mask in masks:
        rest = mask
        for axis in range(3):  # an edge belongs to one face only
            for face in (0, -1) if rest.shape[axis] > 1 else (0,):
                on_face, numbers = np.unique(np.take(rest, face, axis), return_counts=True)
                for label, count in zip(on_face.tolist(), numbers.tolist()):
                    if label:
                        key = int(label) if value is None else value
                        counts[key] = counts.get(key, 0) + count
            rest = np.take(rest, range(1, rest.shape[axis] - 1), axis)
    return counts


def _masks(labels: Array, values: Sequence[int]) -> Iterator[tuple[int, Array]]:
    """Yield each label value with its mask, cropped to the box around it where that is fast."""
    from scipy.ndimage import find_objects

    few = labels.ndim == 3 and max(values, default=0) <= MAX_BOXES
    boxes = find_objects(labels) if few else []
    for value in values:
        if labels.ndim == 4:
            yield value, labels[value - 1] != 0
        elif few:
            yield value, labels[boxes[value - 1]] == value
        else:
            yield value, labels == value


def _count_pieces(mask: Array) -> int:
    """Count connected parts (by faces, edges or corners) that hold :data:`MIN_PIECE_SHARE` of the label."""
    from scipy.ndimage import label

    parts, _ = label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    return int((sizes >= MIN_PIECE_SHARE * sizes.sum()).sum())
