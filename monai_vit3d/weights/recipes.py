"""Prepare scans as published models expect: recipes, which are data, become MONAI transforms.

A recipe is a mapping: ``orientation``, the directions that the array's axes run to (``"RAS"``; ``"SAR"`` is the same
volume as (depth, height, width)); ``steps`` in their order, a row of ``RECIPE_STEPS`` each; and ``overlap``, the part
of a window that the next one covers where a volume is larger than the network's input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    BorderPad,
    CenterSpatialCrop,
    Compose,
    CropForeground,
    Lambda,
    NormalizeIntensity,
    Orientation,
    Resize,
    ResizeWithPadOrCrop,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    SpatialCrop,
    SpatialPad,
    Transform,
)

from monai_vit3d.data.errors import ImageError, UsageError, Vit3dError
from monai_vit3d.data.files import read_text_file
from monai_vit3d.data.in_memory import volumes_from
from monai_vit3d.data.nifti.reader import as_monai
from monai_vit3d.data.published_models import PublishedModel, empty_fields, published_model, published_models
from monai_vit3d.data.readers import read_volume
from monai_vit3d.data.volume import Volume
from monai_vit3d.transforms import SeparableSpacing

Recipe = Mapping[str, Any]


def _resample(spacing_mm: Sequence[float], mode: str | int) -> Transform:
    # scale_extent: the outer edges stay, so that the same field of view in other voxels gives the same grid
    border = "border" if isinstance(mode, str) else "nearest"
    return SeparableSpacing(tuple(spacing_mm), mode=mode, padding_mode=border, scale_extent=True)


def _pad(size: Sequence[int], value: float | str) -> Transform:
    return _PadOrCrop(size, value, SpatialPad)


def _crop_or_pad(size: Sequence[int], value: float | str, odd: str = "last") -> Transform:
    return _PadOrCrop(size, value, {"first": _CropOrPadOddFirst, "last": ResizeWithPadOrCrop}[odd])


class _CropOrPadOddFirst(Transform):
    """Pad and crop around the centre; of an odd number of voxels one more goes first, as TorchIO has it, not last."""

    def __init__(self, size: Sequence[int], **padding: Any) -> None:
        self.size, self.padding = size, padding

    def __call__(self, image: MetaTensor) -> MetaTensor:
        missing = [max(size - n, 0) for size, n in zip(self.size, image.shape[1:])]
        surplus = [max(n - size, 0) for size, n in zip(self.size, image.shape[1:])]
        pad: Transform = BorderPad([side for n in missing for side in (n - n // 2, n // 2)], **self.padding)
        starts = [n - n // 2 for n in surplus]
        crop: Transform = SpatialCrop(roi_start=starts, roi_end=[a + size for a, size in zip(starts, self.size)])
        cropped: MetaTensor = crop(pad(image))
        return cropped


class _PadOrCrop(Transform):
    """Pad, or pad and crop, around the centre with a number, the image's ``"minimum"`` or its ``"edge"`` voxels."""

    def __init__(self, size: Sequence[int], value: float | str, kind: Callable[..., Transform]) -> None:
        self.size, self.value, self.kind = size, value, kind

    def __call__(self, image: MetaTensor) -> MetaTensor:
        if self.value == "edge":
            return self.kind(self.size, mode="edge")(image)
        value = float(image.min()) if self.value == "minimum" else float(self.value)
        return self.kind(self.size, mode="constant", value=value)(image)


def _crop_to_multiple(of: Sequence[int]) -> Transform:
    return Lambda(lambda image: CenterSpatialCrop([max(n // m, 1) * m for n, m in zip(image.shape[1:], of)])(image))


def _crop_foreground(above: float, margin: int) -> Transform:
    return CropForeground(select_fn=lambda image: image > above, margin=margin, allow_smaller=True)


def _clip(range: Sequence[float]) -> Transform:
    low, high = range
    return Lambda(lambda image: image.clamp(low, high))


def _rescale(to: Sequence[float], **source: Sequence[float]) -> Transform:
    (low, high), (new_low, new_high) = source["from"], to
    return ScaleIntensityRange(low, high, new_low, new_high, clip=True)


def _percentiles(lower: float, upper: float, to: Sequence[float]) -> Transform:
    low, high = to
    return ScaleIntensityRangePercentiles(lower, upper, low, high, clip=True)


def _z_score(nonzero: bool) -> Transform:
    return NormalizeIntensity(nonzero=nonzero, channel_wise=True)


def _foreground_z_score(lower: float, upper: float) -> Transform:
    """Clip to percentiles of what is above the mean, then subtract its mean and divide by its deviation."""

    def normalised(image: MetaTensor) -> MetaTensor:
        values = image.as_tensor().double()
        foreground = values[values > values.mean()]
        if not foreground.numel():
            return MetaTensor(torch.zeros_like(values).float(), meta=image.meta)
        low, high = np.percentile(foreground.numpy(), (lower, upper))
        deviation = max(float(foreground.std(correction=0)), 1e-8)
        values = (values.clamp(low, high) - foreground.mean()) / deviation
        return MetaTensor(values.float(), meta=image.meta)

    return Lambda(normalised)


def _min_max() -> Transform:
    return ScaleIntensity(0.0, 1.0)


def _standardise(mean: Sequence[float], std: Sequence[float]) -> Transform:
    return NormalizeIntensity(subtrahend=list(mean), divisor=list(std), channel_wise=True)


def _resize(size: Sequence[int], mode: str) -> Transform:
    return Resize(size, mode=mode)


RECIPE_STEPS: dict[str, Callable[..., Transform]] = {
    "resample": _resample,
    "pad": _pad,
    "crop_or_pad": _crop_or_pad,
    "crop_to_multiple": _crop_to_multiple,
    "crop_foreground": _crop_foreground,
    "resize": _resize,
    "clip": _clip,
    "rescale": _rescale,
    "percentiles": _percentiles,
    "z_score": _z_score,
    "foreground_z_score": _foreground_z_score,
    "min_max": _min_max,
    "standardise": _standardise,
}


class ReadImage(Transform):
    """Read an image strictly, or take one from memory, as MONAI's tensor.

    Args:
        channels: how many are needed; one image is taken for all of them.
    """

    def __init__(self, channels: int = 1) -> None:
        self.channels = channels

    def __call__(self, image: Any) -> MetaTensor:
        """Return (C, H, W, D) float32 with its affine.

        Args:
            image: a path, volumes that were read, or what :func:`~monai_vit3d.data.in_memory.volumes_from` takes.

        Raises:
            ImageError: it cannot be used, or has another number of channels.
        """
        if isinstance(image, str | Path):
            volumes = [read_volume(image)]
        elif isinstance(image, Volume):
            volumes = [image]
        elif isinstance(image, list | tuple) and image and isinstance(image[0], Volume):
            volumes = list(image)
        else:
            volumes = volumes_from(image, channels=self.channels)
        if len(volumes) not in (1, self.channels):
            raise ImageError(f"{volumes[0].path}: {len(volumes)} channels; expected {self.channels}.")
        voxels, meta = as_monai(volumes)
        tensor = torch.from_numpy(np.ascontiguousarray(voxels, np.float32))
        tensor = tensor[None] if tensor.dim() == 3 else tensor
        return MetaTensor(tensor.repeat(self.channels // len(tensor), 1, 1, 1), affine=meta["affine"])


class PrepareScan(Compose):
    """A recipe's transforms; a list is one image of several channels, and errors of ours come as they are.

    Args:
        transforms: in their order.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__(transforms, map_items=False)

    def __call__(self, image: Any, **options: Any) -> Any:  # type: ignore[override]
        """Return the network's input of an image.

        Args:
            image: as for :class:`ReadImage`.
            options: of ``Compose``.

        Raises:
            ImageError: it cannot be used.
        """
        try:
            return super().__call__(image, **options)
        except RuntimeError as error:  # MONAI wraps what a step raises
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, Vit3dError):
                cause = cause.__cause__
            raise cause or error from error


def input_transform(model: str | PublishedModel, **stated: Any) -> Compose:
    """Return what makes a published model's input of a scan, as a MONAI ``Compose``.

    Args:
        model: the name of an entry, or an entry.
        stated: values of the recipe's fields that its authors do not state, by the field's name, as
            ``orientation="RAS"``.

    Returns:
        Of a path, an image in memory or a :class:`~monai_vit3d.data.Volume`: (C, H, W, D) float32 with its affine.

    Raises:
        UsageError: an unknown name, or a recipe with fields that are not stated.

    Example:
        >>> prepare = input_transform("colipri")
        >>> image = prepare("chest.nii.gz")  # doctest: +SKIP
    """
    entry = published_model(model) if isinstance(model, str) else model
    if entry.recipe is None:
        raise UsageError(
            f"{entry.name}: no preparation of volumes is stated by its authors. Give recipe=, a YAML file with "
            "orientation and steps, or the name of another published model."
        )
    return recipe_transform(entry.recipe, entry.input_size[0], name=entry.name, **stated)


def load_recipe(recipe: str | Path | Recipe) -> Recipe:
    """Return a recipe: that of a published model's name, of a YAML file, or itself.

    Raises:
        UsageError: neither a name with a recipe nor a file.
    """
    if isinstance(recipe, Mapping):
        return recipe
    if str(recipe) in published_models():
        entry = published_model(str(recipe))
        if entry.recipe is None:
            raise UsageError(f"recipe={recipe}: no preparation of volumes is stated by its authors. Give a YAML file.")
        return entry.recipe
    import yaml

    try:
        content = yaml.safe_load(read_text_file(Path(recipe)))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's own has several lines
        raise UsageError(f"recipe={recipe}: no published model, and no YAML file ({reason}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"recipe={recipe}: a {type(content).__name__}; expected a mapping with orientation and steps.")
    return content


def recipe_transform(recipe: Recipe, channels: int = 1, name: str = "recipe", **stated: Any) -> Compose:
    """Return the transforms of a recipe; arguments as for :func:`input_transform`.

    Args:
        recipe: orientation and steps.
        channels: of the network's input.
        name: of what it is, for messages.
        stated: values of fields that are None.

    Raises:
        UsageError: a field that is still None, an unknown step, or arguments that it does not have.
    """
    filled = _filled(recipe, stated, name)
    orientation = [Orientation(axcodes=filled["orientation"], labels=None), Lambda(lambda image: image.contiguous())]
    steps = [_step(row, name) for row in filled.get("steps") or ()]
    return PrepareScan([ReadImage(channels), *orientation, *steps])


def _filled(recipe: Recipe, stated: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of a recipe with what is stated in its empty fields, of which none may be left."""
    filled = {"orientation": None, **copy.deepcopy(dict(recipe))}
    places = list(empty_fields(filled))
    for mapping, key, _ in places:
        mapping[key] = stated.get(key)
    missing = [place for mapping, key, place in places if mapping[key] is None]
    unused = [key for key in stated if key not in {key for _, key, _ in places}]
    if missing or unused:
        free = f"{', '.join(unused)}: nothing to fill in. " if unused else ""
        needed = f"not stated by its authors: {', '.join(missing)}. Pass your choice by name, as orientation='RAS'."
        raise UsageError(f"{name}: {free}{needed if missing else 'Leave it out.'}")
    return filled


def _step(row: Mapping[str, Any], name: str) -> Transform:
    if len(row) != 1 or next(iter(row)) not in RECIPE_STEPS:
        raise UsageError(
            f"{name}: {dict(row)!r} is no step; expected one of {', '.join(RECIPE_STEPS)}, and its arguments."
        )
    ((step, options),) = row.items()
    try:
        return RECIPE_STEPS[step](**options)
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{name}: {step}: {error}") from error
