"""Add what an atlas expects to a network's logits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor
from torch.nn.functional import interpolate

from monai_vit3d.data import NiftiReader

LEAST_PRIOR = 1 / 512  # of a class that the atlas has nowhere near: the network can still find it


class AtlasInferer(Inferer):
    """Run another inferer, and add the logarithms of an atlas' probabilities to its logits.

    By Bayes' rule the sum is what image and place say together, if the network's logits are what the image says. A
    network that starts with logits near zero starts with the atlas' answer, and learns what the image adds to it.

    Args:
        inferer: runs the network on images that lie as the atlas does.
        atlas: a file of probabilities, (H, W, D, K), of the classes in their order, over the same box as the images;
            its voxels may be larger.
        num_classes: the number K of classes, background included.

    Raises:
        ImageError: a file of another number of volumes, or as :class:`~monai_vit3d.data.NiftiReader`.
    """

    def __init__(self, inferer: Callable[..., Any], atlas: str | os.PathLike, num_classes: int) -> None:
        super().__init__()
        self.inferer = inferer
        reader = NiftiReader(channels=num_classes)
        probabilities = torch.as_tensor(reader.get_data(reader.read(atlas))[0], dtype=torch.float32)
        self.log_prior = probabilities.clamp(min=LEAST_PRIOR).log()[None]

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run ``network`` over ``inputs`` (B, C, H, W, D); logits (B, K, H, W, D)."""
        logits = torch.as_tensor(self.inferer(inputs, network, *args, **kwargs))
        prior = self.log_prior.to(logits.device)
        return logits + interpolate(prior, logits.shape[2:], mode="trilinear")
