"""One volume through a bundle: preprocessing, network, labels back on the file's own grid."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, LoadImaged
from torch import Tensor

from ..data.errors import BundleError, ImageError
from ..data.nifti.reader import as_monai
from ..data.volume import Array, Volume
from ..inferers import (
    CannotStitch,
    FlipEnsemble,
    FlipSpread,
    PredictionEntropy,
    SpacingInferer,
    can_stitch,
    finite,
    stitch_windows,
    unwrapped,
)
from ..layers.rope import mm_positions
from .back import Back, as_monai_does, check_grid, inverter_for, labels_of
from .bundle import Bundle
from .labelling import (
    Reduction,
    activation_of,
    split_inversion,
    split_steps,
    through,
    whole_numbers,
)
from .memory import out_of_memory

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
    """

    flip_axes: tuple[int, ...] = ()
    uncertainty: str | None = None
    probabilities: bool = False
    volume: int | None = None
    max_voxels: int = 2**30


@dataclass(eq=False)
class Prepared:
    """A volume as the network wants it, with the transforms that lead back."""

    volume: Volume
    image: MetaTensor
    preprocessing: Compose
    postprocessing: list[Any]


@dataclass(eq=False)
class Answer:
    """What the network said of one volume, on the file's own grid.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) overlapping masks; None for a classifier.
        maps: further maps by kind (``"prob"``, ``"entropy"``, ``"variance"``), each (H, W, D) or (C, H, W, D) float32.
        numbers: a classifier's answer, a number for each class.
        warnings: what was odd.
    """

    labels: Array | None = None
    maps: dict[str, Array] = field(default_factory=dict)
    numbers: list[float] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(eq=False)
class Output:
    """The network's answer on its own grid, before it goes back to the file's.

    Args:
        labels: (C, h, w, d); on the file's grid, (C, H, W, D), if ``inverted``.
        values: (C, h, w, d) numbers instead, for a bundle that inverts them, in a way that only MONAI knows.
        maps: further maps by kind.
        numbers: a classifier's.
        warnings: what was odd.
        inverted: whether the labels are back already.
        entropy: of the prediction, per labelled voxel, as :class:`PredictionEntropy` has it; None of a classifier, or
            where all is background.
    """

    labels: Tensor | None = None
    values: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    numbers: list[float] | None = None
    warnings: tuple[str, ...] = ()
    inverted: bool = False
    entropy: float | None = None


class _HeldVolumes(ImageReader):
    """Hands the volumes that the strict door has read to the bundle's own LoadImaged."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = volumes

    def verify_suffix(self, filename: Any) -> bool:
        """Whatever LoadImaged is asked for, it is these volumes."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Nothing is left to read."""
        return data

    def get_data(self, img: Any) -> tuple[Array, dict[str, Any]]:
        """Voxels and what MONAI wants to know of them."""
        voxels, meta = as_monai(self.volumes)
        # a copy: some of MONAI's transforms work in place, and the report shows the image as it came
        return voxels.copy() if len(self.volumes) == 1 else voxels, meta


def check_channels(volumes: Sequence[Volume]) -> None:
    """The images of one case must lie on one grid.

    Raises:
        ImageError: they do not.
    """
    first = volumes[0]
    for other in volumes[1:]:
        same = other.grid.shape == first.grid.shape and np.allclose(
            other.grid.affine_mm, first.grid.affine_mm, atol=1e-3
        )
        if not same:
            raise ImageError(
                f"{other.path}: grid {other.grid.shape} does not match {first.grid.shape} of {first.path}, or lies "
                "elsewhere; the images of one case must lie on one grid. Resample them onto one first."
            )


def prepare(volumes: Sequence[Volume], bundle: Bundle) -> Prepared:
    """Run the bundle's preprocessing over a case's images.

    Args:
        volumes: one for each channel, on one grid.
        bundle: what to run.

    Raises:
        ImageError: the images of the case do not fit each other or the bundle.
    """
    check_channels(volumes)
    steps = copy.deepcopy(bundle.preprocessing)  # a case owns its transforms: threads share no state
    for step in steps:
        if isinstance(step, LoadImaged):
            step.register(_HeldVolumes(volumes))
    compose = Compose(steps)
    image = compose({bundle.image_key: [str(v.path) for v in volumes]})[bundle.image_key]
    if image.shape[0] != bundle.metadata.channels:
        raise ImageError(
            f"{volumes[0].path}: {image.shape[0]} channels; {bundle.metadata.name} needs {bundle.metadata.channels}. "
            "Name the images of each case in a CSV or JSON list."
        )
    if not bool(torch.isfinite(image).all()):
        raise ImageError(f"{volumes[0].path}: NaN or infinite values after the bundle's preprocessing. Look at it.")
    return Prepared(volumes[0], image, compose, copy.deepcopy(bundle.postprocessing))


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
    window = unwrapped(smaller)
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
    """Take the network's answer back to the file's own grid."""
    back = Back(prepared, bundle.image_key)
    answer = Answer(numbers=output.numbers, warnings=output.warnings)
    found = output.labels
    if output.values is not None:
        found = as_monai_does(prepared, output.values, back)
    if found is not None:
        done = output.inverted or output.values is not None
        labels = found.numpy() if done else back(found, nearest=True)
        answer.labels = labels[0] if len(labels) == 1 else labels
    for kind, value in output.maps.items():
        # channel after channel: classes x volume is held once, not once for each step of the way back
        found = np.empty((len(value), *prepared.volume.grid.shape), np.float32)
        for i, channel in enumerate(value):
            found[i] = back(channel[None], nearest=False)[0]
        answer.maps[kind] = found[0] if len(found) == 1 else found
    return answer


def _infer(prepared: Prepared, bundle: Bundle, options: Options) -> Output:
    before, invert, after = split_inversion(prepared.postprocessing)
    steps, rest = split_steps(before)
    lead, following = split_steps(after)
    inverter = None if invert is None or rest else inverter_for(prepared, invert, lead)
    activation = activation_of([*steps, *lead])
    network: Any = bundle.network
    if options.uncertainty == "variance":
        network = FlipSpread(network, options.flip_axes, activation)
    elif options.flip_axes:
        network = FlipEnsemble(network, options.flip_axes)
    entropy = PredictionEntropy(prepared.image.shape[1:], activation)
    reduction = Reduction(steps, options.uncertainty, options.probabilities, inverter, activation, entropy)
    precision: Any = torch.autocast(bundle.device.type) if bundle.autocast else contextlib.nullcontext()
    with torch.no_grad(), precision:
        found = _run(prepared, network, bundle, reduction)
    if found.dim() == 2:
        return _classify(found[0], prepared.postprocessing)
    parts = reduction.split(found[0])
    labels = parts.pop("labels")
    if inverter is not None:
        back = labels_of(inverter.labels(), following, prepared, bundle.image_key, activation)
        return Output(labels=back, maps=parts, inverted=True, entropy=entropy.per_labelled_voxel)
    data: dict[str, Any] = {"pred": labels, bundle.image_key: prepared.image}
    for step in rest:
        data = step(data)
    if invert is not None:
        return Output(values=torch.as_tensor(data["pred"]), maps=parts, entropy=entropy.per_labelled_voxel)
    labels = whole_numbers(data["pred"], activation, discrete=reduction.voxelwise or bool(rest))
    return Output(labels=labels, maps=parts, entropy=entropy.per_labelled_voxel)


def _run(prepared: Prepared, network: Any, bundle: Bundle, reduction: Reduction) -> Tensor:
    """Windows that are turned into labels as they come, or the bundle's inferer as it stands."""
    # whether the bundle thinks of it or not; windows and other networks get plain tensors
    inferer, image = SpacingInferer(bundle.inferer), prepared.image[None]
    volume = image if mm_positions(network) else image.as_tensor()
    if reduction.voxelwise and can_stitch(inferer):
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


def _classify(logits: Tensor, postprocessing: list[Any]) -> Output:
    return Output(numbers=finite(through(postprocessing, logits)).double().flatten().tolist())


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
