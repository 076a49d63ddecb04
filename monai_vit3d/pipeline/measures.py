"""Measure an image, a network's input and labels, in the same numbers for training data and for new cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.orientation import axis_letters
from ..data.volume import Array, Grid
from .stats import LabelSummary

if TYPE_CHECKING:
    from torch import Tensor

AXES = ("left-right", "back-front", "bottom-top")  # of the patient
_AXIS_OF_LETTER = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
QUANTILES = (5, 25, 50, 75, 95)  # in percent
IMAGE_SAMPLE_VOXELS = 2**21  # voxels of an image that are read for what a sample tells as well
FEWEST = 10  # voxels of a label in the sample, below which nothing is said of their values
MOST_BOXES = 2**12  # label values up to which one pass finds the boxes of all
PIECE = 0.05  # share of a label's voxels from which a connected part counts as a piece

Values = dict[str, Any]  # numbers by name, nested


def measure_grid(grid: Grid) -> Values:
    """Field of view and spacing in mm along the patient's axes, each voxel axis counted for the nearest one."""
    order = [_AXIS_OF_LETTER[letter] for letter in axis_letters(grid.affine_mm)]
    spacing = {AXES[axis]: mm for axis, mm in zip(order, grid.spacing_mm)}
    extent = {AXES[axis]: n * mm for axis, n, mm in zip(order, grid.shape, grid.spacing_mm)}
    return {
        "field_of_view_mm": {axis: extent[axis] for axis in AXES},
        "spacing_mm": {axis: spacing[axis] for axis in AXES},
    }


def measure_input(image: Tensor) -> Values:
    """Quantiles of the network's input, all channels together.

    Args:
        image: (C, h, w, d), after the bundle's preprocessing.
    """
    step = _step(image.shape[1:])
    sample = image[:, ::step, ::step, ::step].float().cpu().numpy()
    values = np.quantile(sample, [q / 100 for q in QUANTILES])
    return {"input": {f"{q}%": float(value) for q, value in zip(QUANTILES, values)}}


def measure_labels(labels: Array, voxels: Array, stats: Sequence[LabelSummary], pieces: bool = True) -> Values:
    """Volume, place and connected pieces of each label, and what it lies on.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) masks; channel c is label c + 1.
        voxels: (H, W, D) image.
        stats: of the labels, as :func:`~monai_vit3d.pipeline.stats.label_stats` gives them.
        pieces: whether to count them, which takes longest.
    """
    step = _step(voxels.shape)
    sample = (slice(None, None, step),) * 3
    values, within = voxels[sample], labels[(Ellipsis,) + sample]
    constant = _largest_share_of_one_value(within, values)
    border = _border_voxels(labels)
    found: Values = {}
    for one in stats:
        found[str(one.label)] = measured = {"present": float(one.voxels > 0)}
        if one.voxels:
            measured |= {"volume_ml": one.volume_ml, "border_voxels": float(border.get(one.label, 0))}
            if one.label in constant:
                measured["share_of_one_value"] = constant[one.label]
    if pieces:
        for value, mask in _masks(labels, [one.label for one in stats if one.voxels]):
            found[str(value)]["pieces"] = float(_pieces(mask))
    return {"labels": found, **_foreground_share(within, values)}


def _step(shape: Sequence[int]) -> int:
    return max(1, math.ceil((math.prod(shape) / IMAGE_SAMPLE_VOXELS) ** (1 / 3)))


def _largest_share_of_one_value(labels: Array, voxels: Array) -> dict[int, float]:
    """For each label the share of its voxels that have the image's value which most of them have."""
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
        if count >= FEWEST:
            shares[int(value)] = float(lengths[of[starts] == value].max() / count)
    return shares


def _foreground_share(labels: Array, voxels: Array) -> Values:
    """The share of the image's foreground that has a label; nothing of an image that has one value only."""
    level = _otsu(voxels)
    if level is None:
        return {}
    labelled = labels != 0 if labels.ndim == 3 else (labels != 0).any(axis=0)
    inside = voxels > level
    return {"share_of_foreground": float((labelled & inside).sum() / inside.sum())}


def _otsu(voxels: Array) -> float | None:
    """The level that parts bright from dark (Otsu, "A threshold selection method from gray-level histograms", 1979)."""
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
    """How many voxels of each label lie on the image's faces."""
    counts: dict[int, int] = {}
    masks = [(c + 1, mask != 0) for c, mask in enumerate(labels)] if labels.ndim == 4 else [(None, labels)]
    for value, mask in masks:
        rest = mask
        for axis in range(3):  # an edge belongs to one face only
            for face in (0, -1) if rest.shape[axis] > 1 else (0,):
                here, many = np.unique(np.take(rest, face, axis), return_counts=True)
                for one, count in zip(here.tolist(), many.tolist()):
                    if one:
                        key = int(one) if value is None else value
                        counts[key] = counts.get(key, 0) + count
            rest = np.take(rest, range(1, rest.shape[axis] - 1), axis)
    return counts


def _masks(labels: Array, values: Sequence[int]) -> Iterator[tuple[int, Array]]:
    """Each label as a mask, no larger than the box around it."""
    from scipy.ndimage import find_objects

    few = labels.ndim == 3 and max(values, default=0) <= MOST_BOXES
    boxes = find_objects(labels) if few else []
    for value in values:
        if labels.ndim == 4:
            yield value, labels[value - 1] != 0
        elif few:
            yield value, labels[boxes[value - 1]] == value
        else:
            yield value, labels == value


def _pieces(mask: Array) -> int:
    """Connected parts, by faces, edges or corners, that are no crumbs."""
    from scipy.ndimage import label

    parts, _ = label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    return int((sizes >= PIECE * sizes.sum()).sum())
