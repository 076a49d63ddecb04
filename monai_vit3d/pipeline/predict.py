"""One volume through a bundle: preprocessing, network, labels back on the file's own grid."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from ..data.errors import BundleError, ImageError
from ..data.volume import Array
from ..inferers import (
    CannotStitch,
    FlipEnsemble,
    FlipSpread,
    PredictionEntropy,
    SpacingInferer,
    can_stitch,
    require_finite_scores,
    stitch_windows,
    unwrap_inferer,
)
from ..layers.rope import mm_positions
from .bundle import Bundle
from .memory import out_of_memory
from .postprocessing import through
from .prepare import Prepared
from .to_file_grid import Back, check_grid, dtype_behind, inverter_for, labels_on_file_grid
from .value_names import ValueNames
from .voxelwise import VoxelwisePostprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What is computed for every volume.

    Args:
        flip_axes: axes of the network's input; its answers to all their flips are averaged.
        uncertainty: ``"entropy"`` of the probabilities, ``"variance"`` over the flips, or None.
        probabilities: whether to keep them, a map a class.
        volume: which volume of 4D files, from 0; None refuses them.
        max_voxels: the largest volume that is taken.
        units: ``"stored"``, or ``"suv"``: a DICOM PET's standardised uptake values by body weight.
        seg: whether the labels of DICOM series are written as a DICOM SEG, too.
    """

    flip_axes: tuple[int, ...] = ()
    uncertainty: str | None = None
    probabilities: bool = False
    volume: int | None = None
    max_voxels: int = 2**30
    units: str = "stored"
    seg: bool = True


@dataclass(eq=False)
class Answer:
    """What the network said of one volume, on the file's own grid.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) overlapping masks; None for a classifier.
        maps: further maps by kind (``"prob"``, ``"entropy"``, ``"variance"``), each (H, W, D) or (C, H, W, D) float32.
        numbers: a classifier's answer, a number for each class.
        names: of label values; of masks, channel c is value c + 1.
        warnings: what was odd.
    """

    labels: Array | None = None
    maps: dict[str, Array] = field(default_factory=dict)
    numbers: list[float] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(eq=False)
class Output:
    """The network's answer, before the steps that need all of it.

    Args:
        pred: (C, h, w, d) what the bundle's voxelwise steps leave; labels on the file's grid, (C, H, W, D), if
            ``inverted``.
        dtype: of ``pred`` where MONAI runs the bundle; here labels are held in a smaller one.
        classes: channels of the network's output.
        maps: further maps by kind, on the network's grid.
        numbers: a classifier's.
        warnings: what was odd.
        inverted: whether the bundle's Invertd, and its decision, are done.
        entropy: of the prediction, per labelled voxel, as :class:`PredictionEntropy` has it; None of a classifier, or
            where all is background.
    """

    pred: Tensor | None = None
    dtype: torch.dtype = torch.float32
    classes: int = 0
    maps: dict[str, Tensor] = field(default_factory=dict)
    numbers: list[float] | None = None
    warnings: tuple[str, ...] = ()
    inverted: bool = False
    entropy: float | None = None


def infer(prepared: Prepared, bundle: Bundle, options: Options) -> Output:
    """Run the network; short of memory once, again with one window at a time.

    Raises:
        BundleError: the bundle's output is no labels and no class probabilities.
        ImageError: not enough memory, even with one window at a time.
    """
    try:
        return _infer(prepared, bundle, options)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    _free()
    smaller = copy.deepcopy(bundle.inferer)
    window = unwrap_inferer(smaller)
    if isinstance(window, SlidingWindowInferer):
        window.sw_batch_size = 1
    bundle = replace(bundle, inferer=smaller)
    try:
        output = _infer(prepared, bundle, options)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _free()
        raise ImageError(
            f"{prepared.volume.path}: out of memory on {bundle.device} with {tuple(prepared.image.shape)} voxels. Use "
            "--device cpu, fewer --jobs, a machine with more memory, or a crop of the image."
        ) from error
    return replace(output, warnings=("out of memory; done again with one window at a time",))


def finish(prepared: Prepared, output: Output, bundle: Bundle) -> Answer:
    """Run the bundle's steps on whole volumes, and take the answer to the file's own grid."""
    answer = Answer(numbers=output.numbers, warnings=output.warnings)
    if output.pred is not None:
        found, warnings = labels_on_file_grid(prepared, output)
        labels = found.numpy()
        known = bundle.value_names(output.classes)
        answer.labels = labels[0] if len(labels) == 1 else labels
        answer.names = known.names
        answer.warnings += (*warnings, *_without_names(answer.labels, known, bundle))
    back = Back(prepared)
    for kind, value in output.maps.items():
        # channel after channel: classes x volume is held once, not once for each step of the way back
        found = np.empty((len(value), *prepared.volume.grid.shape), np.float32)
        for i, channel in enumerate(value):
            found[i] = back(channel[None], nearest=False)[0]
        answer.maps[kind] = found[0] if len(found) == 1 else found
    return answer


def _without_names(labels: Array, known: ValueNames, bundle: Bundle) -> list[str]:
    """A warning of label values of which it is not known what they stand for."""
    if labels.ndim == 4:
        values = list(range(1, len(labels) + 1))
    else:  # a byte's values are counted ten times as fast as sorted
        values = (np.bincount(labels.ravel()).nonzero()[0] if labels.dtype == np.uint8 else np.unique(labels)).tolist()
    unknown = [value for value in values if value and value not in known.followed]
    if not unknown or not bundle.metadata.channel_names:
        return []
    return [
        f"label {', '.join(map(str, unknown))}: written without a name, as the bundle's steps do not show which "
        "channels of its network that is"
    ]


def _infer(prepared: Prepared, bundle: Bundle, options: Options) -> Output:
    post = prepared.postprocessing
    inverter = inverter_for(prepared)
    network: Any = bundle.network
    if options.uncertainty == "variance":
        network = FlipSpread(network, options.flip_axes, post.activation)
    elif options.flip_axes:
        network = FlipEnsemble(network, options.flip_axes)
    entropy = PredictionEntropy(prepared.image.shape[1:], post.activation)
    reduction = VoxelwisePostprocessing(post, options.uncertainty, options.probabilities, inverter, entropy)
    precision: Any = torch.autocast(bundle.device.type) if bundle.autocast else contextlib.nullcontext()
    with torch.no_grad(), precision:
        found = _run(prepared, network, bundle, reduction)
    if found.dim() == 2:
        return Output(numbers=require_finite_scores(through(post.own_steps, found[0])).double().flatten().tolist())
    parts = reduction.split(found[0])
    pred = parts.pop("labels")
    dtype = dtype_behind(post.decision if inverter else post.voxelwise, reduction.classes)
    pred = pred if inverter is None else inverter.labels()
    done = inverter is not None
    return Output(pred, dtype, reduction.classes, parts, inverted=done, entropy=entropy.per_labelled_voxel)


def _run(prepared: Prepared, network: Any, bundle: Bundle, reduction: VoxelwisePostprocessing) -> Tensor:
    """Windows that are turned into labels as they come, or the bundle's inferer as it stands."""
    # whether the bundle thinks of it or not; windows and other networks get plain tensors
    inferer, image = SpacingInferer(bundle.inferer), prepared.image[None]
    volume = image if mm_positions(network) else image.as_tensor()
    if reduction.makes_labels and can_stitch(inferer):
        try:
            return stitch_windows(volume, network, inferer, reduction, device=bundle.device)
        except CannotStitch as error:
            logger.info("%s: run again, whole, by the bundle's inferer: %s", prepared.volume.path, error)
            if reduction.entropy is not None:
                reduction.entropy.restart()
            if reduction.inverter is not None:  # earlier windows' planes have come to it
                reduction.inverter.restart()
    logits = inferer(volume.to(bundle.device), network)
    if not isinstance(logits, Tensor):
        raise BundleError(f"{bundle.metadata.name}: the network gives {type(logits).__name__}; one tensor is needed.")
    logits = logits.as_subclass(Tensor)
    if bundle.metadata.classifies or logits.dim() == 2:
        return logits.float().cpu()
    if reduction.inverter is not None:
        check_grid(prepared, logits)
    return reduction(logits).cpu()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
