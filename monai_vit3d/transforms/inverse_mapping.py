"""The mapping from a network's grid back to the file's, read from the trace that MONAI's transforms leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, InvertibleTransform
from monai.utils import TraceKeys, get_torch_dtype_from_string
from torch import Tensor

from .axis_resampling import MAX_ROTATION_VOXELS, AxisInterp, GridMapping

PADS = ("Pad", "SpatialPad", "BorderPad", "DivisiblePad")
CROPS = ("Crop", "SpatialCrop", "CenterSpatialCrop", "CenterScaleCrop")
RESAMPLINGS = ("SpatialResample", "SeparableResample")
MAX_SIGN_ERROR = 1e-4  # how far from whole numbers a matrix of flips and permutations may be


@dataclass(frozen=True, eq=False)
class IndexMap:
    """Where the voxels of a new grid lie in an old one, for grids of which no voxel is interpolated.

    Args:
        source_shape: of the old grid.
        axes: for each new axis, which old one it runs along.
        indices: for each new axis, (n,) indices along that old one; its length, one too many, stands for zeros.
    """

    source_shape: tuple[int, ...]
    axes: tuple[int, ...]
    indices: tuple[Tensor, ...]

    @classmethod
    def identity(cls, shape: tuple[int, ...]) -> IndexMap:
        """Map a grid to itself."""
        return cls(shape, tuple(range(len(shape))), tuple(torch.arange(n) for n in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the new grid."""
        return tuple(len(index) for index in self.indices)

    def crop(self, borders: Any) -> IndexMap:
        """Cut borders off, (before, after) for each axis."""
        indices = tuple(index[a : len(index) - b] for index, (a, b) in zip(self.indices, borders))
        return IndexMap(self.source_shape, self.axes, indices)

    def pad(self, borders: Any) -> IndexMap:
        """Put borders of zeros around, (before, after) for each axis."""
        indices = []
        for index, axis, (a, b) in zip(self.indices, self.axes, borders):
            zeros = self.source_shape[axis]
            indices.append(torch.cat([index.new_full((a,), zeros), index, index.new_full((b,), zeros)]))
        return IndexMap(self.source_shape, self.axes, tuple(indices))

    def reorient(self, signs: np.ndarray) -> IndexMap:
        """Permute and flip axes: each column of ``signs`` is a new axis, 1 or -1 at the one it comes from."""
        order = np.abs(signs).argmax(0).tolist()
        flips = signs.sum(0) < 0
        indices = [self.indices[axis].flip(0) if flip else self.indices[axis] for axis, flip in zip(order, flips)]
        return IndexMap(self.source_shape, tuple(self.axes[axis] for axis in order), tuple(indices))

    def apply(self, values: Tensor, fill: Tensor | None = None) -> Tensor:
        """Select the new grid's values from the old one's.

        Args:
            values: (C, *source_shape).
            fill: (C,), used where the new grid has zeros; None is 0.

        Returns:
            (C, *shape).
        """
        values = values.permute(0, *(axis + 1 for axis in self.axes))
        for dim, index in enumerate(self.indices, 1):
            size = values.shape[dim]
            inside = index < size
            if len(index) and bool(inside.all()) and bool((index.diff() == 1).all()):  # a view
                values = values.narrow(dim, int(index[0]), len(index))
                continue
            values = values.index_select(dim, index.clamp(max=size - 1))
            if not bool(inside.all()):
                empty = 0 if fill is None else fill.reshape(-1, 1, 1, 1)
                shape = [-1 if d == dim else 1 for d in range(4)]
                values = torch.where(inside.reshape(shape), values, empty).to(values.dtype)
        return values


@dataclass(frozen=True, eq=False)
class InverseMapping:
    """From the network's grid to the file's: an index map, at most one interpolation, another index map.

    Args:
        before: from the network's grid to the one that is interpolated.
        axis_interps: where each axis of the interpolated grid comes from, if the two grids' axes are parallel.
        xform: (4, 4) float64, voxel of the interpolated grid to voxel of the one before, if they are not; voxels
            outside have the values of the border.
        after: from the interpolated grid to the file's.
    """

    before: IndexMap
    axis_interps: tuple[AxisInterp, ...] | None
    xform: Tensor | None
    after: IndexMap


def trace_inverse(image: MetaTensor | None, transform: Compose, shape: tuple[int, ...]) -> InverseMapping | None:
    """Build the mapping that ``Invertd`` with ``nearest_interp=False`` would apply.

    It knows Orientation, Spacing (MONAI's and ours) with bilinear interpolation, pads and crops.

    Args:
        image: (C, h, w, d), the output of ``transform``.
        transform: from a file to the network's input.
        shape: of the file's grid.

    Returns:
        the mapping; None if the transforms do more than an :class:`InverseMapping` can hold.
    """
    invertible = [t for t in transform.flatten().transforms if isinstance(t, InvertibleTransform)]
    if not isinstance(image, MetaTensor) or image.ndim != 4 or transform.lazy or image.pending_operations:
        return None
    if not invertible and image.applied_operations:
        return None
    try:
        return _TraceInverter(image).invert(image, shape)
    except (_UnknownStepError, KeyError, np.linalg.LinAlgError):
        return None


class _UnknownStepError(Exception):
    """A step of preprocessing that cannot be inverted here."""


class _TraceInverter:
    """The grid while the steps of preprocessing are inverted, from the last to the first."""

    def __init__(self, image: MetaTensor) -> None:
        self.before: IndexMap | None = None
        self.index_map = IndexMap.identity(tuple(image.shape[1:]))
        self.affine = image.affine.double().cpu().numpy()
        self.axis_interps: tuple[AxisInterp, ...] | None = None
        self.xform: Tensor | None = None

    def invert(self, image: MetaTensor, shape: tuple[int, ...]) -> InverseMapping:
        """Invert all steps."""
        for name, step in _steps(image):
            extra = step[TraceKeys.EXTRA_INFO]
            if name in PADS:
                self._invert_pad(extra["padded"])
            elif name in CROPS:
                self._invert_crop(extra["cropped"])
            elif name == "Orientation":
                self._invert_orientation(np.asarray(extra["original_affine"], float))
            else:
                self._invert_resampling(extra, tuple(int(n) for n in step[TraceKeys.ORIG_SIZE]))
            _require(self.index_map.shape == tuple(int(n) for n in step[TraceKeys.ORIG_SIZE]))
        _require(self.index_map.shape == tuple(shape))
        if self.before is None:
            return InverseMapping(self.index_map, None, None, IndexMap.identity(self.index_map.shape))
        return InverseMapping(self.before, self.axis_interps, self.xform, self.index_map)

    def _invert_pad(self, padded: Any) -> None:
        _require(tuple(padded[0]) == (0, 0) and len(padded) == 4 and min(min(pair) for pair in padded) >= 0)
        self._shift_origin([pair[0] for pair in padded[1:]])
        self.index_map = self.index_map.crop(padded[1:])

    def _invert_crop(self, cropped: Any) -> None:
        _require(len(cropped) == 6 and min(cropped) >= 0)
        self._shift_origin([-n for n in cropped[::2]])
        self.index_map = self.index_map.pad(list(zip(cropped[::2], cropped[1::2])))

    def _shift_origin(self, voxels: list[int]) -> None:
        self.affine = self.affine.copy()
        self.affine[:3, 3] += self.affine[:3, :3] @ voxels

    def _invert_orientation(self, original_affine: np.ndarray) -> None:
        """Invert a change of the axes' order and directions."""
        signs = np.linalg.solve(self.affine, original_affine)
        whole = signs[:3, :3].round()
        _require(np.abs(signs[:3, :3] - whole).max() < MAX_SIGN_ERROR)
        _require(all(np.abs(whole).sum(axis).tolist() == [1, 1, 1] for axis in (0, 1)))
        matrix = np.eye(4)
        matrix[:3, :3] = whole
        matrix[:3, 3] = np.where(whole.sum(1) < 0, np.array(self.index_map.shape) - 1, 0)
        self.index_map, self.affine = self.index_map.reorient(whole), self.affine @ matrix

    def _invert_resampling(self, extra: Mapping[str, Any], size: tuple[int, ...]) -> None:
        """Invert a change of spacing."""
        target, source = (torch.as_tensor(a, dtype=torch.float64) for a in (extra["src_affine"], self.affine))
        xform = torch.as_tensor(np.linalg.solve(source, target))
        mapping = GridMapping(source, xform, self.index_map.shape, size)
        if mapping.is_identity(target):
            return
        mode, padding_mode, align_corners = (extra[name] for name in ("mode", "padding_mode", "align_corners"))
        dtype = get_torch_dtype_from_string(extra["dtype"])
        _require(self.before is None and mode == "bilinear" and min(size) > 0)
        if mapping.rotation_voxels() <= MAX_ROTATION_VOXELS:
            interps = mapping.axis_interps(mode, padding_mode, align_corners is True, dtype)
            _require(interps is not None)
            self.axis_interps = tuple(interps or ())
        else:
            # coordinates in float32 would be other ones
            _require(padding_mode == "border" and dtype is torch.float64)
            self.xform = mapping.xform
        self.before, self.index_map, self.affine = self.index_map, IndexMap.identity(size), target.numpy()


def _steps(image: MetaTensor) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and trace of each step that was applied, the last first; a step of two parts comes as two."""
    for step in reversed(image.applied_operations):
        name, extra = str(step[TraceKeys.CLASS_NAME]), step.get(TraceKeys.EXTRA_INFO, {})
        _require(not step.get(TraceKeys.LAZY, False) and step.get(TraceKeys.DO_TRANSFORM, True))
        if name == "CropForeground":
            yield _with_name(extra["pad_info"], PADS)
            yield "Crop", step
        elif name == "ResizeWithPadOrCrop":
            yield _with_name(extra["pad_info"], PADS)
            yield _with_name(extra["crop_info"], CROPS)
        else:
            yield _with_name(step, (*PADS, *CROPS, "Orientation", *RESAMPLINGS))


def _with_name(step: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Mapping[str, Any]]:
    name = str(step[TraceKeys.CLASS_NAME])
    _require(name in names)
    return name, step


def _require(condition: object) -> None:
    if not condition:
        raise _UnknownStepError
