"""Run a bundle's preprocessing over a case's images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import ImageReader, MetaTensor
from monai.transforms import Compose, LoadImaged, ResampleToMatchd, SpatialResampled

from monai_vit3d.data.errors import BundleError, ImageError
from monai_vit3d.data.nifti.reader import as_monai
from monai_vit3d.data.same_grid import check_same_grid
from monai_vit3d.data.volume import Array, Volume

if TYPE_CHECKING:
    from monai_vit3d.bundle.load import BundleSteps
    from monai_vit3d.bundle.postprocessing import Postprocessing


_ADVICE = "Resample it onto that grid first, or give resample_channels=True to have it done."


@dataclass(eq=False)
class Prepared:
    """A case as the network takes it, with the transforms that lead back to the file's grid.

    Args:
        volume: the first of the case; labels get its grid.
        data: the result of preprocessing, by key.
        image_key: of the network's input in ``data``.
        preprocessing: the case's own transforms.
        postprocessing: the case's own steps; those that invert, invert ``preprocessing``.
    """

    volume: Volume
    data: dict[Any, Any]
    image_key: str
    preprocessing: Compose
    postprocessing: Postprocessing

    @property
    def image(self) -> MetaTensor:
        """The network's input, (C, h, w, d)."""
        return self.data[self.image_key]


class _HeldVolumes(ImageReader):
    """Hand the volumes that were read strictly to the bundle's own LoadImaged."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = dict(zip(_names(volumes), volumes))

    def verify_suffix(self, filename: Any) -> bool:
        """Accept any file: it is one of these volumes."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Return the names; the volumes are read already."""
        return data

    def get_data(self, img: Any) -> tuple[Array, dict[str, Any]]:
        """Return voxels and MONAI's metadata of one image, or of several that are its channels."""
        volumes = [self.volumes[name] for name in img]
        voxels, meta = as_monai(volumes)
        # a copy: some of MONAI's transforms work in place, and the report shows the image as it came
        return voxels.copy() if len(volumes) == 1 else voxels, meta


def prepare(volumes: Sequence[Volume], bundle: BundleSteps) -> Prepared:
    """Run the bundle's preprocessing over a case's images.

    Args:
        volumes: one for each channel, or for each key that the bundle loads; on one grid, unless the bundle brings
            them onto one itself.
        bundle: what to run; its network is not needed.

    Raises:
        ImageError: the images of the case do not fit each other or the bundle, or nothing is left of them.
        BundleError: the preprocessing makes no image of them.
    """
    # a case owns its transforms: threads share no state. Copied at once, as Invertd holds those that it inverts
    preprocessing, postprocessing = copy.deepcopy((bundle.preprocessing, bundle.postprocessing))
    steps, load_keys = preprocessing.steps, preprocessing.load_keys
    if len(load_keys) == 1 or not any(isinstance(step, ResampleToMatchd | SpatialResampled) for step in steps):
        for other in volumes[1:]:
            check_same_grid(volumes[0], other, _ADVICE)
    _check_size(volumes, preprocessing.max_voxels)
    files = _files(volumes, load_keys)
    for step in steps:
        if isinstance(step, LoadImaged):
            step.register(_HeldVolumes(volumes))
    compose = Compose(steps, lazy=preprocessing.lazy)
    data = _run(compose, files, preprocessing.image_key, volumes[0].path)
    image = data[preprocessing.image_key]
    if image.shape[0] != bundle.metadata.channels:
        raise ImageError(
            f"{volumes[0].path}: {image.shape[0]} channels; {bundle.metadata.name} needs {bundle.metadata.channels}. "
            "Name its files NAME_0000, NAME_0001, ..., or list the images of each case in a CSV or JSON list."
        )
    if not bool(torch.isfinite(image).all()):
        raise ImageError(f"{volumes[0].path}: NaN or infinite values after the bundle's preprocessing. Look at it.")
    return Prepared(volumes[0], data, preprocessing.image_key, compose, postprocessing)


def _check_size(volumes: Sequence[Volume], limit: int | None) -> None:
    large = [volume for volume in volumes if limit is not None and volume.voxels.size > limit]
    if large:
        raise ImageError(
            f"{large[0].path}: {large[0].voxels.size} voxels; the bundle's reader takes {limit} (max_voxels). Crop it."
        )


def _files(volumes: Sequence[Volume], keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the input of the bundle's LoadImaged: all images under one key, or one under each."""
    names = _names(volumes)
    if len(keys) == 1:
        return {keys[0]: names}
    if len(names) != len(keys):
        raise ImageError(keys_needed(str(volumes[0].path), len(names), keys))
    return {key: [name] for key, name in zip(keys, names)}


def _names(volumes: Sequence[Volume]) -> list[str]:
    """Name each volume by its path, and those of one 4D file by path and number."""
    paths = [str(volume.path) for volume in volumes]
    return paths if len(set(paths)) == len(paths) else [f"{path}[{i}]" for i, path in enumerate(paths)]


def keys_needed(where: str, count: int, keys: Sequence[str]) -> str:
    """Say which images a bundle with several keys expects for each case."""
    columns = ",".join(f"image_{key}" for key in keys)
    return (
        f"{where}: {count} image(s); the bundle loads {len(keys)} for each case: {', '.join(keys)}. Name their files "
        f"NAME_0000, NAME_0001, ... in this order, or give a CSV list with the columns {columns}."
    )


def _run(compose: Compose, files: dict[str, list[str]], image_key: str, path: Path) -> dict[Any, Any]:
    try:
        data = compose(dict(files))
    except Exception as error:
        refused = _image_error(error)
        if refused is not None:
            text = str(refused)
            raise ImageError(text if str(path) in text else f"{path}: {text}") from error
        emptied = _emptied_by(compose, files)
        if emptied is None:
            raise
        raise ImageError(_nothing_left(path, emptied)) from error
    image = data.get(image_key)
    if not isinstance(image, MetaTensor) or image.ndim != 4:
        came = tuple(image.shape) if isinstance(image, torch.Tensor) else f"a {type(image).__name__}"
        raise BundleError(
            f"{path}: the bundle's preprocessing leaves {came} under {image_key!r}; expected one volume (C, H, W, D) "
            "with its metadata there."
        )
    if image.numel() == 0:
        raise ImageError(_nothing_left(path, _emptied_by(compose, files) or "preprocessing"))
    return dict(data)


def _image_error(error: BaseException) -> ImageError | None:
    """Find the error of ours that a step raised, around which MONAI's Compose has put its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ImageError):
        cause = cause.__cause__
    return cause


def _nothing_left(path: Path, step: str) -> str:
    return f"{path}: nothing is left of it after the bundle's {step}. Is it the right image? Look at it."


def _emptied_by(compose: Compose, files: dict[str, list[str]]) -> str | None:
    """Find the first step after which an image has no voxels; None if there is none."""
    data: Any = dict(files)
    for step in compose.transforms:
        try:
            data = step(data)
        except Exception:
            return None
        if any(isinstance(value, torch.Tensor) and value.numel() == 0 for value in data.values()):
            return type(step).__name__
    return None
