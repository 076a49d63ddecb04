"""Normalise each channel of an image by a scheme of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from monai_vit3d.data.errors import UsageError

Scheme = Mapping[str, Any]


def clip_z(image: Tensor, low: float, high: float, mean: float, std: float) -> Tensor:
    """Clip to [low, high], subtract the mean and divide by the std of a whole data set, as for CT."""
    return (image.clamp(low, high) - mean) / std


def z_score(image: Tensor) -> Tensor:
    """Subtract the image's mean and divide by its std; a constant image becomes 0."""
    return _standardised(image, image)


def z_nonzero(image: Tensor) -> Tensor:
    """Do as :func:`z_score` over the voxels that are not 0, and leave those at 0."""
    foreground = image != 0
    return torch.where(foreground, _standardised(image, image[foreground]), 0.0)


def _standardised(image: Tensor, sample: Tensor) -> Tensor:
    if sample.numel() == 0:
        return image
    # float64: float32 sums of squares of millions of voxels at CT's scale are wrong in the third digit
    sample = sample.double()
    std = float(sample.std(correction=0))
    return (image - float(sample.mean())) / (std or 1.0)


# name: function and its numbers
SCHEMES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "clip_z": (clip_z, ("low", "high", "mean", "std")),
    "z": (z_score, ()),
    "z_nonzero": (z_nonzero, ()),
}


class NormalizeChannelsd(MapTransform):
    """Normalise each channel of an image by its own scheme; metadata stay.

    Args:
        keys: of the images, ``(C, ...)``.
        channels: a scheme for each channel: ``{"scheme": "clip_z", "low": …, "high": …, "mean": …, "std": …}`` with
            the numbers of the training data, ``{"scheme": "z"}`` or ``{"scheme": "z_nonzero"}`` with those of the
            image itself.
        allow_missing_keys: whether items without the image pass.

    Raises:
        UsageError: an unknown scheme, or numbers that it does not have or needs; or an image with another number of
            channels.

    Example:
        >>> normalize = NormalizeChannelsd("image", channels=[{"scheme": "z"}, {"scheme": "z_nonzero"}])
        >>> normalize({"image": torch.rand(2, 8, 8, 8)})["image"].shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(self, keys: KeysCollection, channels: Sequence[Scheme], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = [dict(scheme) for scheme in channels]
        for i, scheme in enumerate(self.channels):
            _check_scheme(scheme, i)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its images in float32, normalised."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._normalised(item[key])
        return item

    def _normalised(self, image: Tensor) -> Tensor:
        if len(image) != len(self.channels):
            raise UsageError(
                f"channels has {len(self.channels)} schemes, the image has {len(image)} channels; expected one scheme "
                "for each channel."
            )
        result = image.float().clone()
        for channel, scheme in zip(torch.as_tensor(result), self.channels):
            function, names = SCHEMES[scheme["scheme"]]
            channel.copy_(function(torch.as_tensor(channel), **{name: scheme[name] for name in names}))
        return result


def _check_scheme(scheme: Scheme, channel: int) -> None:
    name = scheme.get("scheme")
    if name not in SCHEMES:
        raise UsageError(f"channels[{channel}]: scheme {name!r}; expected one of {', '.join(SCHEMES)}.")
    names = {"scheme", *SCHEMES[name][1]}
    if set(scheme) != names:
        raise UsageError(
            f"channels[{channel}]: {sorted(scheme)}; scheme {name!r} has {sorted(names)}, no more and no less."
        )
    if name == "clip_z" and not (scheme["low"] < scheme["high"] and scheme["std"] > 0):
        raise UsageError(f"channels[{channel}]: {dict(scheme)}; expected low below high and std above 0.")
