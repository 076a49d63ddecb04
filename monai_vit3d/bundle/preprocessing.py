"""Interpret a bundle's steps before the network, once, when the bundle is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai.transforms import Compose, EnsureChannelFirstd, InvertibleTransform, LoadImaged, Orientationd
from monai.utils import CommonKeys

from monai_vit3d.data.errors import BundleError

from .reader_options import reader_options


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """A bundle's transforms from files to the network's input.

    Args:
        steps: the transforms, one after another.
        load_keys: under which keys they load images, in order; more than one where each modality has its own.
        max_voxels: the largest image that the bundle's own reader accepts; None is any.
        lazy: whether their Compose resamples once for several transforms.
    """

    steps: tuple[Any, ...]
    load_keys: tuple[str, ...]
    max_voxels: int | None = None
    lazy: bool = False

    @classmethod
    def of(cls, composed: Any) -> Preprocessing:
        """Interpret a bundle's ``preprocessing``.

        An Orientationd is added where the reader was to turn the image (``as_closest_canonical``), so that its inverse
        is known. Where several images become one, the inverse leads from the one to the first of them.

        Args:
            composed: the entry as MONAI builds it; a Compose gets the same steps, which the bundle's Invertd inverts.

        Raises:
            BundleError: no LoadImaged, a reader that is not known, or options that are not served.
        """
        lazy = _is_lazy(composed)
        steps = flatten(composed)
        loaders = [step for step in steps if isinstance(step, LoadImaged)]
        keys = tuple(dict.fromkeys(str(key) for step in loaders for key in step.keys))
        if not keys:
            raise BundleError("'preprocessing' has no LoadImaged; expected one that loads the image.")
        limits = []
        for step in loaders:
            options = reader_options(step)
            limits += [options["max_voxels"]] if options.get("max_voxels") is not None else []
            if options.get("as_closest_canonical"):
                steps.insert(_channel_first(steps, step), Orientationd(step.keys, axcodes="RAS", labels=None))
        joined = tuple(_with_keys_joined(steps, keys))
        if isinstance(composed, Compose):
            composed.transforms = joined
        return cls(joined, keys, min(limits, default=None), lazy)

    @property
    def image_key(self) -> str:
        """The key of the network's input: of the image, if one is loaded, else MONAI's ``"image"``."""
        return _image_key(self.load_keys)


def flatten(transform: Any) -> list[Any]:
    """List the transforms of a Compose and of those inside it; of a single transform or None, it or nothing."""
    if transform is None:
        return []
    return list(transform.flatten().transforms) if isinstance(transform, Compose) else [transform]


def _image_key(load_keys: tuple[str, ...]) -> str:
    return load_keys[0] if len(load_keys) == 1 else str(CommonKeys.IMAGE)


def _is_lazy(composed: Any) -> bool:
    """Return whether the preprocessing resamples once for several transforms.

    Raises:
        BundleError: options of Compose that are not served.
    """
    if type(composed) is not Compose:
        return False
    if composed.overrides or not composed.map_items or composed.unpack_items:
        raise BundleError("'preprocessing': Compose with overrides, map_items or unpack_items is not served.")
    inner = {_is_lazy(step) for step in composed.transforms if type(step) is Compose}
    if inner - {bool(composed.lazy)}:
        raise BundleError("'preprocessing': some of its Compose are lazy, some are not; expected one.")
    return bool(composed.lazy)


def _channel_first(steps: list[Any], loader: LoadImaged) -> int:
    """Return the index after the step that puts the channels of a loader's images first."""
    place = steps.index(loader) + 1
    if loader._loader.ensure_channel_first:
        return place
    for i, step in enumerate(steps[place:], place):
        if isinstance(step, EnsureChannelFirstd) and set(loader.keys) <= set(step.keys):
            return i + 1
    raise BundleError(
        "LoadImaged(as_closest_canonical=True): no ensure_channel_first there and no EnsureChannelFirstd after it; "
        "expected one."
    )


class _SameImage(InvertibleTransform):
    """Rename an image for the inverse: later transforms know it under one key, earlier ones under another.

    Args:
        before: its key in earlier transforms.
        after: its key in later ones.
    """

    def __init__(self, before: str, after: str) -> None:
        self.before, self.after = before, after

    def __call__(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the data unchanged."""
        return data

    def inverse(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Add the image under the earlier key."""
        renamed = dict(data)
        if self.after in renamed:
            renamed[self.before] = renamed[self.after]
        return renamed


def _with_keys_joined(steps: list[Any], load_keys: tuple[str, ...]) -> list[Any]:
    first, last = load_keys[0], _image_key(load_keys)
    if first == last:
        return steps
    place = next((i for i, step in enumerate(steps) if last in getattr(step, "keys", ())), len(steps))
    return [_SameImage(last, first), *steps[:place], _SameImage(first, last), *steps[place:]]
