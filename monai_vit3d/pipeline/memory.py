"""Whether a volume fits into memory, known before the work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.errors import ImageError
from ..data.volume import Grid
from .memory_limits import available_bytes
from .overlay import axis_letters

if TYPE_CHECKING:
    from monai.transforms import Spacingd

    from ..bundle.load import Bundle
    from .options import Options

# fitted to benchmarks/memory.py, which prints them beside what was measured
BYTES_PER_VOXEL = 20  # of an image, or of labels: float32, and copies that transforms make
BYTES_PER_RESAMPLED_VOXEL = 56  # of the new grid by MONAI, however many channels: its coordinates are 7 float64 numbers
BYTES_PER_LABELLED_VOXEL = 14  # of the network's grid: labels, and what the bundle makes of them
BYTES_PER_INVERTED_LABEL = 4  # of the file's grid: labels that come back, and what the bundle makes of them
COPIES = 3  # of masks in float32, while steps run over them
LABEL_PLANES = 6  # of each grid, all classes, while labels come back
WINDOWS = 6  # outputs of a batch, and their products with the weights, that are alive together
_AXES = dict(zip("LRPAIS", (0, 0, 1, 1, 2, 2)))


def network_shape(grid: Grid, bundle: Bundle) -> tuple[int, ...]:
    """The network's grid, as far as Orientationd and Spacingd tell; other steps only crop or pad."""
    from monai.transforms import Orientationd, Spacingd

    shape, spacing = np.array(grid.shape, float), np.array(grid.spacing_mm)
    for step in bundle.preprocessing.steps:
        if isinstance(step, Orientationd):
            axes = [_AXES[letter] for letter in axis_letters(grid.affine_mm)]
            order = [axes.index(_AXES[code]) for code in step.ornt_transform.axcodes or "RAS"]
            shape, spacing = np.array(grid.shape, float)[order], np.array(grid.spacing_mm)[order]
        if isinstance(step, Spacingd):
            # positive entries only: the others keep the file's spacing
            wanted = np.ravel(step.spacing_transform.pixdim).astype(float)[:3]
            wanted = np.where(wanted > 0, wanted, spacing[: len(wanted)])
            if step.spacing_transform.diagonal and len(wanted) == 3:  # the box around the turned file
                shape = np.abs(grid.affine_mm[:3, :3]) @ (np.array(grid.shape) - 1) / wanted + 1
            else:
                shape[: len(wanted)] *= spacing[: len(wanted)] / wanted
            break
    return tuple(max(1, math.ceil(n - 1e-3)) for n in shape.tolist())


def network_voxels(grid: Grid, bundle: Bundle) -> int:
    """Voxels of the network's grid."""
    return math.prod(network_shape(grid, bundle))


def needed_bytes(grid: Grid, channels: int, bundle: Bundle, options: Options | None = None) -> int:
    """Memory that a case needs: its voxels, and its hungriest stage.

    What the network itself needs for a window is not known, and not in it.

    Args:
        grid: of the images.
        channels: how many there are.
        bundle: what is run.
        options: what is computed; None is the labels alone.
    """
    classes = len(bundle.metadata.channel_names) or 2
    maps = _maps(classes, options)
    there, back = network_voxels(grid, bundle), math.prod(grid.shape)
    # a spacing that is kept is not resampled, and the numbers of voxels are then the same
    grid_bytes = BYTES_PER_RESAMPLED_VOXEL if there != back and not _separable(bundle) else 0
    preprocess = there * (BYTES_PER_VOXEL * channels + grid_bytes)
    network = there * (BYTES_PER_LABELLED_VOXEL + 4 * channels + 4 * maps)
    network += _stitching(grid, bundle, classes, options)
    more = 4 * COPIES * (bundle.postprocessing.masks(classes) - 1)
    network += more * there
    way = _inverting(bundle)
    if way in ("aligned", "turned"):
        planes = sum(math.prod(shape) / min(shape) for shape in (network_shape(grid, bundle), grid.shape))
        network += BYTES_PER_INVERTED_LABEL * back + 4 * classes * math.ceil(LABEL_PLANES * planes)
        network += 8 * classes * there if way == "turned" else 0
        grid_bytes = grid_bytes if maps else 0
    write = back * (BYTES_PER_VOXEL + grid_bytes + 4 * maps + more) + there * (4 * channels + 4 + 4 * maps + more)
    if way == "MONAI":  # float64 there and back, and float32
        network += 8 * classes * there
        write += 12 * classes * (there + back * bundle.postprocessing.inverts)
    return 4 * back * channels + max(8 * back, preprocess, network, write)  # 8: a voxel as it is stored, at most


def _inverting(bundle: Bundle) -> str | None:
    """How class scores are taken to the file's grid, or kept for MONAI's steps; None where labels are."""
    from monai.transforms import InvertibleTransform, Orientationd, Spacingd
    from monai.transforms.croppad.dictionary import Cropd, Padd

    post = bundle.postprocessing
    if post.makes_labels:
        return None
    steps = [step for step in bundle.preprocessing.steps if isinstance(step, InvertibleTransform)]
    known = all(isinstance(step, Orientationd | Spacingd | Cropd | Padd) for step in steps)
    spacings = [step for step in steps if isinstance(step, Spacingd)]
    linear = all(_resamples(step, "bilinear") for step in spacings)
    if post.inversion is None or not (known and linear) or len(spacings) > 1:
        return "MONAI"
    return "turned" if spacings and spacings[0].spacing_transform.diagonal else "aligned"


def _separable(bundle: Bundle) -> bool:
    """Whether images are resampled one axis after another, without coordinates of each voxel."""
    from monai.transforms import Spacingd

    from ..transforms import SeparableSpacingd

    steps = [step for step in bundle.preprocessing.steps if isinstance(step, Spacingd)]
    return all(
        isinstance(step, SeparableSpacingd)
        and not step.spacing_transform.diagonal
        and _resamples(step, "bilinear", "nearest")
        for step in steps
    )


def _resamples(step: Spacingd, *modes: str) -> bool:
    """Whether a Spacingd knows only these modes, and takes what is outside from the border."""
    return {*map(str, step.mode)} <= {*modes} and {*map(str, step.padding_mode)} == {"border"}


def _maps(classes: int, options: Options | None) -> int:
    """Float maps that are kept beside the labels."""
    if options is None:
        return 0
    return classes * options.probabilities + (options.uncertainty is not None)


def _stitching(grid: Grid, bundle: Bundle, classes: int, options: Options | None) -> int:
    """Memory for a network's answer while it is turned into labels: a band of windows, or the whole of it."""
    from monai.utils import fall_back_tuple

    from ..inferers import can_stitch, unwrap_inferer

    shape, window = network_shape(grid, bundle), unwrap_inferer(bundle.inferer)
    if bundle.metadata.classifies:
        return 0
    if options is not None and options.uncertainty == "variance":
        classes *= 3
    if not can_stitch(bundle.inferer):
        return 4 * 2 * classes * math.prod(shape)
    if bundle.device.type != "cpu" and window.device is None and window.cpu_thresh is None:
        return 0  # it lies on the network's device
    roi = fall_back_tuple(window.roi_size, shape)
    band = (classes + 1) * roi[0] * max(roi[1], shape[1]) * max(roi[2], shape[2])
    return 4 * (band + WINDOWS * window.sw_batch_size * classes * math.prod(roi))


def check_memory(path: Path, grid: Grid, channels: int, bundle: Bundle, options: Options | None = None) -> None:
    """Refuse a case that would not fit, instead of being killed in its middle.

    Args:
        path: of the first image, for the message.
        grid: of the file.
        channels: of the image.
        bundle: that predicts.
        options: of the run.

    Raises:
        ImageError: it would not fit.
    """
    needed, free = needed_bytes(grid, channels, bundle, options), available_bytes()
    if needed > free:
        raise ImageError(
            f"{path}: {grid.shape} voxels of {tuple(round(mm, 3) for mm in grid.spacing_mm)} mm need about "
            f"{needed / 2**30:.1f} GiB for this bundle, {free / 2**30:.1f} GiB are free. Crop the image, use fewer "
            "jobs=, or a machine with more memory."
        )
