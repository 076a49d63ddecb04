"""MONAI's Spacing, one axis after another where no axis of the grid is turned: the same values, many times faster."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Spacing, Spacingd, SpatialResample
from monai.utils import TraceKeys, get_equivalent_dtype, get_torch_dtype_from_string
from torch import Tensor

from .axis_resampling import AxisInterp, GridMapping

MAX_FLOAT32_DIFFERENCE = 1e38  # the difference of two larger values leaves float32


class SeparableResample(SpatialResample):
    """MONAI's ``SpatialResample``, one axis after another in float32 where the grids differ by no rotation or shear.

    The coordinates are MONAI's own. Values differ by rounding, less than 1e-6 of the largest; nearest ones not at all.
    MONAI's way is taken for anything else: other modes than bilinear and nearest, coordinates outside the image with
    another padding than border, images that are not 3D, not on the CPU, lazy, or part of a gradient, and for linear
    interpolation of values that are not finite or above 1e38.

    Arguments are those of ``monai.transforms.SpatialResample``.
    """

    def __call__(
        self,
        img: Tensor,
        dst_affine: Tensor | None = None,
        spatial_size: Sequence[int] | Tensor | int | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> Tensor:
        """Resample; arguments as MONAI's.

        Args:
            img: (C, H, W, D).
            dst_affine: (4, 4), voxel to world, of the result.
            spatial_size: of the result.
            mode: bilinear, nearest, or others of MONAI's.
            padding_mode: what lies outside.
            align_corners: as of ``grid_sample``.
            dtype: in which coordinates are computed.
            lazy: whether to note it only.

        Returns:
            (C, H', W', D') float32.
        """
        given = (
            _text(self.mode if mode is None else mode),
            _text(self.padding_mode if padding_mode is None else padding_mode),
            self.align_corners if align_corners is None else align_corners,
            get_equivalent_dtype(dtype or self.dtype or img.dtype, torch.Tensor),
        )
        lazy = self.lazy if lazy is None else lazy
        move = None if lazy else GridMapping.between(img, dst_affine, spatial_size)
        lines = move and _is_served(img, given[0]) and move.lines(*given)
        if not move or not lines:
            return super().__call__(img, dst_affine, spatial_size, *given, lazy=lazy)
        traced = self._traced(img, move, *given)
        return MetaTensor(_resample(img.as_tensor(), lines)).copy_meta_from(traced)

    def inverse(self, data: Tensor) -> Tensor:
        """Back to the grid that the last call came from.

        Args:
            data: (C, H', W', D'), with the trace of that call.
        """
        trace = self.pop_transform(data)
        info = trace[TraceKeys.EXTRA_INFO]
        corners = info["align_corners"]
        with self.trace_transform(False):
            return SeparableResample.__call__(
                self,
                data,
                info["src_affine"],
                trace[TraceKeys.ORIG_SIZE],
                info["mode"],
                info["padding_mode"],
                False if corners == TraceKeys.NONE else corners,
                get_torch_dtype_from_string(info["dtype"]),
            )

    def _traced(self, img: MetaTensor, move: GridMapping, mode: Any, padding: Any, corners: bool, dtype: Any) -> Any:
        """What MONAI's own resampling notes of itself."""
        extra = {"dtype": str(dtype)[6:], "mode": mode, "padding_mode": padding, "align_corners": corners}
        return self.track_transform_meta(
            img,
            sp_size=torch.tensor(move.after),
            affine=move.xform,
            extra_info={**extra, "src_affine": move.source},
            orig_size=img.peek_pending_shape(),
            transform_info=self.get_transform_info(),
            lazy=False,
        )


class SeparableSpacing(Spacing):
    """``monai.transforms.Spacing`` by :class:`SeparableResample`; same arguments, same result."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sp_resample = _separable(self.sp_resample)


class SeparableSpacingd(Spacingd):
    """``monai.transforms.Spacingd`` by :class:`SeparableResample`; same arguments, same result.

    Example:
        >>> from monai.transforms import Compose, LoadImaged
        >>> spacing = SeparableSpacingd("image", pixdim=(1.5, 1.5, 2.0), mode="bilinear")
        >>> steps = Compose([LoadImaged("image", ensure_channel_first=True), spacing])

        or ``"_target_": "monai_vit3d.data.SeparableSpacingd"``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spacing_transform.sp_resample = _separable(self.spacing_transform.sp_resample)


def _resample(image: Tensor, lines: list[AxisInterp]) -> Tensor:
    """(C, H, W, D) to (C, H', W', D') float32, plane after plane: a plane stays in a core's cache."""
    if any(line.weight is not None for line in lines):
        image = image.float()
    out = torch.empty(len(image), *(len(line.lower) for line in lines))
    # planes as they lie in memory, however the axes were permuted before
    order = sorted(range(3), key=lambda axis: -image.stride(axis + 1))
    source, target = (t.permute(0, *(axis + 1 for axis in order)) for t in (image, out))
    first, second, third = (lines[axis] for axis in order)
    for planes, results in zip(source, target):
        for result, (lower, upper, weight) in zip(results, first):
            plane = torch.lerp(planes[lower], planes[upper], weight) if weight else planes[lower]
            result.copy_(third.along(second.along(plane, 0), 1))
    return out


def _is_served(image: MetaTensor, mode: Any) -> bool:
    """Whether differences of values are finite, where they are taken; NaN fails, too."""
    if mode != "bilinear" or not image.is_floating_point():
        return True
    # axes as they lie in memory: others take 100 times as long
    low, high = image.as_tensor().permute(sorted(range(4), key=lambda axis: -image.stride(axis))).aminmax()
    return bool(low >= -MAX_FLOAT32_DIFFERENCE) and bool(high <= MAX_FLOAT32_DIFFERENCE)


def _separable(resample: SpatialResample) -> SeparableResample:
    return SeparableResample(
        resample.mode, resample.padding_mode, resample.align_corners, resample.dtype, resample.lazy
    )


def _text(mode: Any) -> Any:
    return mode.value if isinstance(mode, Enum) else mode
