"""MONAI's Spacing, one axis after another where the grid is not rotated: the same values, many times faster."""

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

MAX_FLOAT32_DIFFERENCE = 1e38  # the difference of two larger values overflows float32


class SeparableResample(SpatialResample):
    """Resample like MONAI's ``SpatialResample``, but axis by axis in float32 if there is no rotation or shear.

    The coordinates are MONAI's own. Linear values differ by rounding, less than 1e-6 of the largest; nearest ones are
    the same. MONAI itself resamples anything else: other modes than bilinear and nearest, coordinates outside the
    image with another padding than border, images that are not 3D, not on the CPU, lazy, or part of a gradient, and
    values that are not finite or above 1e38 if they are interpolated linearly.

    Arguments are those of ``monai.transforms.SpatialResample``.
    """

    def __call__(
        self,
        img: Any,
        dst_affine: Tensor | None = None,
        spatial_size: Sequence[int] | Tensor | int | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> Tensor:
        """Resample to a grid; arguments are MONAI's.

        Args:
            img: (C, H, W, D).
            dst_affine: (4, 4), voxel to world, of the result.
            spatial_size: of the result.
            mode: bilinear, nearest, or others of MONAI's.
            padding_mode: what lies outside.
            align_corners: as of ``grid_sample``.
            dtype: in which coordinates are computed.
            lazy: whether to record the step only.

        Returns:
            (C, H', W', D') float32.
        """
        options = (
            _text(self.mode if mode is None else mode),
            _text(self.padding_mode if padding_mode is None else padding_mode),
            self.align_corners if align_corners is None else align_corners,
            get_equivalent_dtype(dtype or self.dtype or img.dtype, torch.Tensor),
        )
        lazy = self.lazy if lazy is None else lazy
        mapping = None if lazy else GridMapping.between(img, dst_affine, spatial_size)
        interps = mapping and _can_interpolate(img, options[0]) and mapping.axis_interps(*options)
        if not mapping or not interps:
            return super().__call__(img, dst_affine, spatial_size, *options, lazy=lazy)
        traced = self._with_trace(img, mapping, *options)
        return MetaTensor(_resample(img.as_tensor(), interps)).copy_meta_from(traced)

    def inverse(self, data: Tensor) -> Tensor:
        """Resample back to the grid that the last call came from.

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

    def _with_trace(
        self, img: MetaTensor, mapping: GridMapping, mode: Any, padding_mode: Any, align_corners: bool, dtype: Any
    ) -> Any:
        """Add the trace that MONAI's own resampling leaves to the image's metadata."""
        extra = {"dtype": str(dtype)[6:], "mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
        return self.track_transform_meta(
            img,
            sp_size=torch.tensor(mapping.target_shape),
            affine=mapping.xform,
            extra_info={**extra, "src_affine": mapping.source_affine},
            orig_size=img.peek_pending_shape(),
            transform_info=self.get_transform_info(),
            lazy=False,
        )


class SeparableSpacing(Spacing):
    """Resample like ``monai.transforms.Spacing``, by :class:`SeparableResample`; same arguments, same result."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sp_resample = _separable(self.sp_resample)


class SeparableSpacingd(Spacingd):
    """Resample like ``monai.transforms.Spacingd``, by :class:`SeparableResample`; same arguments, same result.

    Example:
        >>> from monai.transforms import Compose, LoadImaged
        >>> spacing = SeparableSpacingd("image", pixdim=(1.5, 1.5, 2.0), mode="bilinear")
        >>> steps = Compose([LoadImaged("image", ensure_channel_first=True), spacing])

        or ``"_target_": "monai_vit3d.transforms.SeparableSpacingd"``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spacing_transform.sp_resample = _separable(self.spacing_transform.sp_resample)


def _resample(image: Tensor, interps: list[AxisInterp]) -> Tensor:
    """Resample (C, H, W, D) to (C, H', W', D') float32, plane by plane: a plane stays in a core's cache."""
    if any(interp.weight is not None for interp in interps):
        image = image.float()
    out = torch.empty(len(image), *(len(interp.lower) for interp in interps))
    # planes as they lie in memory, however the axes were permuted before
    strides = image.stride()
    order = sorted(range(3), key=lambda axis: -strides[axis + 1])
    source, target = (t.permute(0, *(axis + 1 for axis in order)) for t in (image, out))
    first, second, third = (interps[axis] for axis in order)
    for source_planes, target_planes in zip(source, target):
        for target_plane, (lower, upper, weight) in zip(target_planes, first):
            low = source_planes[lower]
            plane = torch.lerp(low, source_planes[upper], weight) if weight else low
            target_plane.copy_(third.resample(second.resample(plane, 0), 1))
    return out


def _can_interpolate(image: MetaTensor, mode: Any) -> bool:
    """Return whether differences of values, where they are taken, are finite; NaN fails, too."""
    if mode != "bilinear" or not image.is_floating_point():
        return True
    # axes as they lie in memory: any other order takes 100 times as long
    strides = image.stride()
    low, high = image.as_tensor().permute(sorted(range(4), key=lambda axis: -strides[axis])).aminmax()
    return bool(low >= -MAX_FLOAT32_DIFFERENCE) and bool(high <= MAX_FLOAT32_DIFFERENCE)


def _separable(resample: SpatialResample) -> SeparableResample:
    return SeparableResample(
        resample.mode, resample.padding_mode, resample.align_corners, resample.dtype, resample.lazy
    )


def _text(mode: Any) -> Any:
    return mode.value if isinstance(mode, Enum) else mode
