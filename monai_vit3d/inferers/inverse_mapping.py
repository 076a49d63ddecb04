"""The way from a network's grid back to the file's, read from the trace that MONAI's transforms leave."""

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

from ..data.axis_resampling import TURN_VOXELS, AxisInterp, GridMapping

PADS = ("Pad", "SpatialPad", "BorderPad", "DivisiblePad")
CROPS = ("Crop", "SpatialCrop", "CenterSpatialCrop", "CenterScaleCrop")
SIGN = 1e-4  # how far from whole numbers a matrix of flips and permutations may be


@dataclass(frozen=True, eq=False)
class IndexMap:
    """Voxels of a new grid, taken from an old one as they are.

    Args:
        source: shape of the old grid.
        axes: for each new axis, which old one it runs along.
        index: for each new axis, (n,) indices along that old one; its length, one too many, stands for zeros.
    """

    source: tuple[int, ...]
    axes: tuple[int, ...]
    index: tuple[Tensor, ...]

    @classmethod
    def all(cls, shape: tuple[int, ...]) -> IndexMap:
        """Each voxel where it is."""
        return cls(shape, tuple(range(len(shape))), tuple(torch.arange(n) for n in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the new grid."""
        return tuple(len(index) for index in self.index)

    def without(self, padded: Any) -> IndexMap:
        """Borders, (before, after) for each axis, cut off."""
        return IndexMap(self.source, self.axes, tuple(i[a : len(i) - b] for i, (a, b) in zip(self.index, padded)))

    def within(self, cropped: Any) -> IndexMap:
        """Borders of zeros put around."""
        index = []
        for old, axis, (a, b) in zip(self.index, self.axes, cropped):
            none = self.source[axis]
            index.append(torch.cat([old.new_full((a,), none), old, old.new_full((b,), none)]))
        return IndexMap(self.source, self.axes, tuple(index))

    def turned(self, signs: np.ndarray) -> IndexMap:
        """Axes permuted and flipped: each column of ``signs`` is a new one's, 1 or -1 at the one it comes from."""
        order = np.abs(signs).argmax(0).tolist()
        flips = signs.sum(0) < 0
        index = [self.index[axis].flip(0) if flip else self.index[axis] for axis, flip in zip(order, flips)]
        return IndexMap(self.source, tuple(self.axes[axis] for axis in order), tuple(index))

    def take(self, values: Tensor, outside: Tensor | None = None) -> Tensor:
        """The new grid's values.

        Args:
            values: (C, *source).
            outside: (C,), what stands for zeros; None is 0.
        """
        values = values.permute(0, *(axis + 1 for axis in self.axes))
        for dim, index in enumerate(self.index, 1):
            size = values.shape[dim]
            inside = index < size
            if len(index) and bool(inside.all()) and bool((index.diff() == 1).all()):  # a view
                values = values.narrow(dim, int(index[0]), len(index))
                continue
            values = values.index_select(dim, index.clamp(max=size - 1))
            if not bool(inside.all()):
                empty = 0 if outside is None else outside.reshape(-1, 1, 1, 1)
                shape = [-1 if d == dim else 1 for d in range(4)]
                values = torch.where(inside.reshape(shape), values, empty).to(values.dtype)
        return values


@dataclass(frozen=True, eq=False)
class InverseMapping:
    """From the network's grid to the file's: voxels taken, at most one interpolation, voxels taken.

    Args:
        before: from the network's grid to the one that is interpolated.
        lines: where each axis of the interpolated grid comes from, if no axis is turned.
        xform: (4, 4) float64, voxel of the interpolated grid to voxel of the one before, if some are; values outside
            are those at the border.
        after: from the interpolated grid to the file's.
    """

    before: IndexMap
    lines: tuple[AxisInterp, ...] | None
    xform: Tensor | None
    after: IndexMap


def trace_inverse(image: MetaTensor | None, transform: Compose, shape: tuple[int, ...]) -> InverseMapping | None:
    """Trace what ``Invertd`` with ``nearest_interp=False`` would do.

    None where that is more than an :class:`InverseMapping` can hold.

    Known are Orientation, Spacing (MONAI's and ours) with bilinear interpolation, pads and crops.

    Args:
        image: (C, h, w, d), what ``transform`` made.
        transform: of a file to the network's input.
        shape: of the file's grid.
    """
    invertible = [t for t in transform.flatten().transforms if isinstance(t, InvertibleTransform)]
    if not isinstance(image, MetaTensor) or image.ndim != 4 or transform.lazy or image.pending_operations:
        return None
    if not invertible and image.applied_operations:
        return None
    try:
        return _Walk(image).back(image, shape)
    except (_Unknown, KeyError, np.linalg.LinAlgError):
        return None


class _Unknown(Exception):
    """A step that cannot be undone here."""


class _Walk:
    """The grid, while the steps of preprocessing are undone from the last to the first."""

    def __init__(self, image: MetaTensor) -> None:
        self.before: IndexMap | None = None
        self.places = IndexMap.all(tuple(image.shape[1:]))
        self.affine = image.affine.double().cpu().numpy()
        self.lines: tuple[AxisInterp, ...] | None = None
        self.xform: Tensor | None = None

    def back(self, image: MetaTensor, shape: tuple[int, ...]) -> InverseMapping:
        """Undo all."""
        for name, step in _steps(image):
            extra = step[TraceKeys.EXTRA_INFO]
            if name in PADS:
                self._pad(extra["padded"])
            elif name in CROPS:
                self._crop(extra["cropped"])
            elif name == "Orientation":
                self._turn(np.asarray(extra["original_affine"], float))
            else:
                self._resample(extra, tuple(int(n) for n in step[TraceKeys.ORIG_SIZE]))
            _need(self.places.shape == tuple(int(n) for n in step[TraceKeys.ORIG_SIZE]))
        _need(self.places.shape == tuple(shape))
        if self.before is None:
            return InverseMapping(self.places, None, None, IndexMap.all(self.places.shape))
        return InverseMapping(self.before, self.lines, self.xform, self.places)

    def _pad(self, padded: Any) -> None:
        """Undo a pad."""
        _need(tuple(padded[0]) == (0, 0) and len(padded) == 4 and min(min(pair) for pair in padded) >= 0)
        self._shift([pair[0] for pair in padded[1:]])
        self.places = self.places.without(padded[1:])

    def _crop(self, cropped: Any) -> None:
        """Undo a crop."""
        _need(len(cropped) == 6 and min(cropped) >= 0)
        self._shift([-n for n in cropped[::2]])
        self.places = self.places.within(list(zip(cropped[::2], cropped[1::2])))

    def _shift(self, voxels: list[int]) -> None:
        self.affine = self.affine.copy()
        self.affine[:3, 3] += self.affine[:3, :3] @ voxels

    def _turn(self, original: np.ndarray) -> None:
        """Undo a change of the axes' order and directions."""
        signs = np.linalg.solve(self.affine, original)
        whole = signs[:3, :3].round()
        _need(np.abs(signs[:3, :3] - whole).max() < SIGN)
        _need(all(np.abs(whole).sum(axis).tolist() == [1, 1, 1] for axis in (0, 1)))
        matrix = np.eye(4)
        matrix[:3, :3] = whole
        matrix[:3, 3] = np.where(whole.sum(1) < 0, np.array(self.places.shape) - 1, 0)
        self.places, self.affine = self.places.turned(whole), self.affine @ matrix

    def _resample(self, extra: Mapping[str, Any], size: tuple[int, ...]) -> None:
        """Undo a change of spacing."""
        target, source = (torch.as_tensor(a, dtype=torch.float64) for a in (extra["src_affine"], self.affine))
        move = GridMapping(source, torch.as_tensor(np.linalg.solve(source, target)), self.places.shape, size)
        if move.is_none(target):
            return
        mode, padding, corners = (extra[name] for name in ("mode", "padding_mode", "align_corners"))
        dtype = get_torch_dtype_from_string(extra["dtype"])
        _need(self.before is None and mode == "bilinear" and min(size) > 0)
        if move.turn_voxels() <= TURN_VOXELS:
            lines = move.lines(mode, padding, corners is True, dtype)
            _need(lines is not None)
            self.lines = tuple(lines or ())
        else:
            _need(padding == "border" and dtype is torch.float64)  # coordinates in float32 are other ones
            self.xform = move.xform
        self.before, self.places, self.affine = self.places, IndexMap.all(size), target.numpy()


def _steps(image: MetaTensor) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What was applied, the last first; those that are two in one as two."""
    for step in reversed(image.applied_operations):
        name, extra = str(step[TraceKeys.CLASS_NAME]), step.get(TraceKeys.EXTRA_INFO, {})
        _need(not step.get(TraceKeys.LAZY, False) and step.get(TraceKeys.DO_TRANSFORM, True))
        if name == "CropForeground":
            yield _named(extra["pad_info"], PADS)
            yield "Crop", step
        elif name == "ResizeWithPadOrCrop":
            yield _named(extra["pad_info"], PADS)
            yield _named(extra["crop_info"], CROPS)
        else:
            yield _named(step, (*PADS, *CROPS, "Orientation", "SpatialResample", "SeparableResample"))


def _named(step: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, Mapping[str, Any]]:
    name = str(step[TraceKeys.CLASS_NAME])
    _need(name in known)
    return name, step


def _need(condition: object) -> None:
    if not condition:
        raise _Unknown
