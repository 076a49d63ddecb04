"""Estimate the memory that a case needs before its voxels are read: what each stage holds, and the largest of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.volume import Grid
from monai_vit3d.memory_limits import available_bytes

if TYPE_CHECKING:
    from monai_vit3d.bundle.load import Bundle

    from .options import Options

# bytes, fitted to benchmarks/memory.py, which prints estimates beside what was measured
BYTES_PER_STORED_VOXEL = 8  # of a file, at most
BYTES_PER_VOXEL = 20  # of an image, or of labels: float32, and copies that transforms make
BYTES_PER_RESAMPLED_VOXEL = 56  # of the new grid by MONAI, however many channels: its coordinates are 7 float64 numbers
BYTES_PER_LABELLED_VOXEL = 14  # of the network's grid: labels, and what the bundle makes of them
BYTES_PER_INVERTED_LABEL = 4  # of the file's grid: labels that come back, and what the bundle makes of them
COPIES = 3  # of masks in float32, while steps run over them
LABEL_PLANES = 6  # of each grid, all classes, while labels come back
WINDOWS = 6  # outputs of a batch, and their products with the weights, that are alive together
_FLOAT = 4
_AXES = dict(zip("LRPAIS", (0, 0, 1, 1, 2, 2)))


def check_memory(path: Path, grid: Grid, channels: int, bundle: Bundle, options: Options | None = None) -> None:
    """Refuse a case that would not fit, instead of being killed in its middle.

    Args:
        path: of the first image, for the message.
        grid: of the images.
        channels: how many there are.
        bundle: what is run.
        options: what is computed; None is the labels alone.

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


def needed_bytes(grid: Grid, channels: int, bundle: Bundle, options: Options | None = None) -> int:
    """Estimate the memory of a case: the images, which are held to the end, and the stage that needs most.

    What the network itself needs for a window is not known, and not in it.

    Args:
        grid: of the images.
        channels: how many there are.
        bundle: what is run.
        options: what is computed; None is the labels alone.
    """
    return _Estimate(grid, channels, bundle, options).peak


def network_shape(grid: Grid, bundle: Bundle) -> tuple[int, ...]:
    """Work out the network's grid from Orientationd and Spacingd; other steps only crop or pad."""
    from monai.transforms import Orientationd, Spacingd

    shape, spacing = np.array(grid.shape, float), np.array(grid.spacing_mm)
    for step in bundle.preprocessing.steps:
        if isinstance(step, Orientationd):
            axes = [_AXES[letter] for letter in axis_letters(grid.affine_mm)]
            order = [axes.index(_AXES[code]) for code in step.ornt_transform.axcodes or "RAS"]
            shape, spacing = np.array(grid.shape, float)[order], np.array(grid.spacing_mm)[order]
        if isinstance(step, Spacingd):
            pixdim = np.ravel(step.spacing_transform.pixdim).astype(float)[:3]
            pixdim = np.where(pixdim > 0, pixdim, spacing[: len(pixdim)])  # others keep the file's spacing
            if step.spacing_transform.diagonal and len(pixdim) == 3:  # the box around the rotated file
                shape = np.abs(grid.affine_mm[:3, :3]) @ (np.array(grid.shape) - 1) / pixdim + 1
            else:
                shape[: len(pixdim)] *= spacing[: len(pixdim)] / pixdim
            break
    return tuple(max(1, math.ceil(n - 1e-3)) for n in shape.tolist())


class _Estimate:
    """Bytes that a case holds in each stage.

    Args:
        grid: of the images.
        channels: how many there are.
        bundle: what is run.
        options: what is computed; None is the labels alone.
    """

    def __init__(self, grid: Grid, channels: int, bundle: Bundle, options: Options | None) -> None:
        self.bundle, self.channels = bundle, channels
        self.file_shape, self.network_shape = grid.shape, network_shape(grid, bundle)
        self.file_voxels, self.network_voxels = math.prod(grid.shape), math.prod(self.network_shape)
        self.classes = len(bundle.metadata.channel_names) or 2
        self.with_variance = options is not None and options.uncertainty == "variance"
        maps = 0 if options is None else self.classes * options.probabilities + (options.uncertainty is not None)
        self.maps = _FLOAT * maps  # bytes a voxel, as the masks'
        self.masks = _FLOAT * COPIES * (bundle.postprocessing.masks(self.classes) - 1)
        self.inversion = _inversion_of_scores(bundle)
        # a spacing that is kept is not resampled, and the numbers of voxels are then the same
        resampled = self.network_voxels != self.file_voxels and not _is_separable(bundle)
        self.coordinates = BYTES_PER_RESAMPLED_VOXEL if resampled else 0

    @property
    def peak(self) -> int:
        """Bytes of the images in float32 and of the stage that needs most."""
        stages = (self.read(), self.preprocess(), self.infer(), self.finish())
        return _FLOAT * self.file_voxels * self.channels + max(stages)

    def read(self) -> int:
        """Count a file's stored voxels, of all channels if it is 4D."""
        return BYTES_PER_STORED_VOXEL * self.file_voxels * self.channels

    def preprocess(self) -> int:
        """Sum the channels on the network's grid, copies of them, and coordinates."""
        return self.network_voxels * (BYTES_PER_VOXEL * self.channels + self.coordinates)

    def infer(self) -> int:
        """Sum the input, its labels and maps, windows in stitching, and labels on their way to the file's grid."""
        per_voxel = BYTES_PER_LABELLED_VOXEL + _FLOAT * self.channels + self.maps + self.masks
        return self.network_voxels * per_voxel + self._stitching() + self._inverting()

    def finish(self) -> int:
        """Sum labels and maps on both grids, and what the bundle's steps make of them."""
        coordinates = 0 if self.inversion in ("aligned", "rotated") and not self.maps else self.coordinates
        per_file_voxel = BYTES_PER_VOXEL + coordinates + self.maps + self.masks
        per_network_voxel = _FLOAT * (self.channels + 1) + self.maps + self.masks
        labels = self.file_voxels * per_file_voxel + self.network_voxels * per_network_voxel
        if self.inversion != "MONAI":
            return labels
        inverted = self.file_voxels * self.bundle.postprocessing.inverts
        return labels + 3 * _FLOAT * self.classes * (self.network_voxels + inverted)  # float64, and float32

    def _stitching(self) -> int:
        """Count the network's output until it is labels: a band of windows, or all of it."""
        from monai.utils import fall_back_tuple

        from monai_vit3d.inferers import can_stitch, unwrap_inferer

        window = unwrap_inferer(self.bundle.inferer)
        if self.bundle.metadata.classifies:
            return 0
        classes = 3 * self.classes if self.with_variance else self.classes
        if not can_stitch(self.bundle.inferer):
            return 2 * _FLOAT * classes * self.network_voxels
        if self.bundle.device.type != "cpu" and window.device is None and window.cpu_thresh is None:
            return 0  # it lies on the network's device
        roi, shape = fall_back_tuple(window.roi_size, self.network_shape), self.network_shape
        band = (classes + 1) * roi[0] * max(roi[1], shape[1]) * max(roi[2], shape[2])
        return _FLOAT * (band + WINDOWS * window.sw_batch_size * classes * math.prod(roi))

    def _inverting(self) -> int:
        """Count class scores on their way to the file's grid: planes of them, or for rotated grids and MONAI all."""
        whole = 2 * _FLOAT * self.classes * self.network_voxels
        if self.inversion in (None, "MONAI"):
            return whole if self.inversion else 0
        planes = sum(math.prod(shape) / min(shape) for shape in (self.network_shape, self.file_shape))
        labels = BYTES_PER_INVERTED_LABEL * self.file_voxels
        labels += _FLOAT * self.classes * math.ceil(LABEL_PLANES * planes)
        return labels + (whole if self.inversion == "rotated" else 0)


def _inversion_of_scores(bundle: Bundle) -> str | None:
    """Return how class scores go to the file's grid: by planes, "aligned" or "rotated", or "MONAI"; None for labels."""
    from monai.transforms import InvertibleTransform, Orientationd, Spacingd
    from monai.transforms.croppad.dictionary import Cropd, Padd

    post = bundle.postprocessing
    if post.makes_labels:
        return None
    steps = [step for step in bundle.preprocessing.steps if isinstance(step, InvertibleTransform)]
    by_planes = all(isinstance(step, Orientationd | Spacingd | Cropd | Padd) for step in steps)
    spacings = [step for step in steps if isinstance(step, Spacingd)]
    linear = all(_resamples(step, "bilinear") for step in spacings)
    if post.inversion is None or not (by_planes and linear) or len(spacings) > 1:
        return "MONAI"
    return "rotated" if spacings and spacings[0].spacing_transform.diagonal else "aligned"


def _is_separable(bundle: Bundle) -> bool:
    """Return whether images are resampled one axis after another, without coordinates of each voxel."""
    from monai.transforms import Spacingd

    from monai_vit3d.transforms import SeparableSpacingd

    return all(
        isinstance(step, SeparableSpacingd)
        and not step.spacing_transform.diagonal
        and _resamples(step, "bilinear", "nearest")
        for step in bundle.preprocessing.steps
        if isinstance(step, Spacingd)
    )


def _resamples(step: Any, *modes: str) -> bool:
    """Return whether a Spacingd knows only these modes, and takes what is outside from the border."""
    return {*map(str, step.mode)} <= {*modes} and {*map(str, step.padding_mode)} == {"border"}
