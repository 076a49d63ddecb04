"""Run a bundle's network over a prepared case, and turn its output into labels window by window."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from monai_vit3d.bundle.load import Bundle
from monai_vit3d.bundle.postprocessing import apply_steps
from monai_vit3d.bundle.voxelwise import VoxelwisePostprocessing
from monai_vit3d.data.errors import BundleError, ImageError
from monai_vit3d.inferers import (
    AffineEnsemble,
    CannotStitch,
    FlipEnsemble,
    FlipSpread,
    PredictionEntropy,
    SpacingInferer,
    can_stitch,
    stitch_windows,
    unwrap_inferer,
)
from monai_vit3d.layers.rope import mm_positions
from monai_vit3d.memory_limits import out_of_memory
from monai_vit3d.transforms import LabelInverter, require_finite_scores, trace_inverse

from .options import Options
from .prepare import Prepared

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class NetworkOutput:
    """The network's output for a case, before the steps that need whole volumes.

    Args:
        prepared: the case.
        labels: (C, h, w, d) what the bundle's voxelwise steps leave; on the file's grid, (C, H, W, D), if ``inverted``.
            None for a classifier.
        dtype: of ``labels`` where MONAI runs the bundle; here labels are held in a smaller one.
        classes: channels of the network's output.
        maps: further maps by kind (``"prob"``, ``"entropy"``, ``"variance"``), on the network's grid.
        scores: a classifier's, a number for each class.
        warnings: what was odd.
        doubts: what the bundle's inferer is not certain of.
        inverted: whether the bundle's Invertd, and its decision, are done.
        entropy: of the prediction, per labelled voxel, as :class:`PredictionEntropy` has it; None of a classifier, or
            where all is background.
    """

    prepared: Prepared
    labels: Tensor | None = None
    dtype: torch.dtype = torch.float32
    classes: int = 0
    maps: dict[str, Tensor] = field(default_factory=dict)
    scores: list[float] | None = None
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    inverted: bool = False
    entropy: float | None = None


def infer(prepared: Prepared, bundle: Bundle, options: Options) -> NetworkOutput:
    """Run the network; when memory is short, once more with one window at a time.

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
            "device=cpu, fewer jobs=, a machine with more memory, or a crop of the image."
        ) from error
    return replace(output, warnings=("out of memory; done again with one window at a time",))


def _infer(prepared: Prepared, bundle: Bundle, options: Options) -> NetworkOutput:
    post = prepared.postprocessing
    inverter = inverter_for(prepared)
    network: Any = bundle.network
    if any(options.tta_degrees) or options.tta_scales:
        network = AffineEnsemble(network, options.tta_degrees, options.tta_scales)
    if options.uncertainty == "variance":
        network = FlipSpread(network, options.flip_axes, post.activation)
    elif options.flip_axes:
        network = FlipEnsemble(network, options.flip_axes)
    entropy = PredictionEntropy(prepared.image.shape[1:], post.activation)
    reduction = VoxelwisePostprocessing(post, options.uncertainty, options.probabilities, inverter, entropy)
    precision: Any = torch.autocast(bundle.device.type) if bundle.autocast else contextlib.nullcontext()
    with torch.no_grad(), precision:
        reduced = _run(prepared, network, bundle, reduction)
    doubts = tuple(getattr(unwrap_inferer(bundle.inferer), "doubts", ()))  # of a HeadInferer
    if reduced.dim() == 2:
        scores = require_finite_scores(apply_steps(post.own_steps, reduced[0]))
        return NetworkOutput(prepared, scores=scores.double().flatten().tolist(), doubts=doubts)
    maps = reduction.split(reduced[0])
    labels = maps.pop("labels")
    return NetworkOutput(
        prepared,
        labels if inverter is None else inverter.labels(),
        _dtype_after(post.voxelwise if inverter is None else post.decision, reduction.classes),
        reduction.classes,
        maps,
        doubts=doubts,
        inverted=inverter is not None,
        entropy=entropy.per_labelled_voxel,
    )


def _run(prepared: Prepared, network: Any, bundle: Bundle, reduction: VoxelwisePostprocessing) -> Tensor:
    """Stitch windows into labels as they come, or run the bundle's inferer as it is."""
    # also for bundles without a SpacingInferer; windows and other networks get plain tensors
    inferer, image = SpacingInferer(bundle.inferer), prepared.image
    volume = (image if mm_positions(network) else image.as_tensor())[None]
    if reduction.makes_labels and can_stitch(inferer):
        try:
            return stitch_windows(volume, network, inferer, reduction, device=bundle.device)
        except CannotStitch as error:
            logger.info("%s: run again, whole, by the bundle's inferer: %s", prepared.volume.path, error)
            if reduction.entropy is not None:
                reduction.entropy.restart()
            if reduction.inverter is not None:  # it already holds planes of earlier windows
                reduction.inverter.restart()
    logits = inferer(volume.to(bundle.device), network)
    if not isinstance(logits, Tensor):
        raise BundleError(f"{bundle.metadata.name}: the network gives {type(logits).__name__}; expected one tensor.")
    logits = logits.as_subclass(Tensor)
    if bundle.metadata.classifies or logits.dim() == 2:
        return logits.float().cpu()
    if reduction.inverter is not None:
        check_grid(prepared, logits)
    return reduction(logits).cpu()


def inverter_for(prepared: Prepared) -> LabelInverter | None:
    """Make the inverter that takes class scores to the file's grid and labels them there; None leaves it to MONAI."""
    post, path = prepared.postprocessing, prepared.volume.path
    decide = post.rule
    if post.inversion is None or decide is None:
        if post.inverts_scores:
            logger.info("%s: the bundle's postprocessing is inverted by MONAI, all classes at once", path)
        return None
    image = prepared.data.get(post.inversion.orig_keys[0])
    mapping = trace_inverse(image, prepared.preprocessing, prepared.volume.grid.shape)
    if mapping is None:
        logger.info("%s: the bundle's preprocessing is inverted by MONAI, all classes at once", path)
        return None
    return LabelInverter(mapping, decide)


def check_grid(prepared: Prepared, values: Tensor) -> None:
    """Make sure that the network's output lies on its input's grid.

    Raises:
        BundleError: it does not.
    """
    expected, came = tuple(prepared.image.shape[1:]), tuple(values.shape[-3:])
    if came != expected:  # MONAI would take it for the input's grid, and put the labels elsewhere
        raise BundleError(
            f"{prepared.volume.path}: the network's answer has the grid {came}, its input {expected}; expected one. "
            "Give the bundle a window of a size that its network keeps, or a DivisiblePadd."
        )


def _dtype_after(steps: tuple[Any, ...], classes: int) -> torch.dtype:
    """Return the type of tensor that voxelwise steps leave."""
    return apply_steps(steps, torch.zeros(classes, 1, 1, 1)).dtype


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
