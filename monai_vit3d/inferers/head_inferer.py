"""What inferers of whole heads have in common: a localizer, a pose, and doubts about the last input."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError

from .head_localizer import HeadLocalizer, HeadPose

logger = logging.getLogger(__name__)

LEAST_PROBABILITY = 1e-6  # logits are logarithms of probabilities of at least this


class HeadInferer(Inferer):
    """Find a head with a :class:`HeadLocalizer`, and label it in boxes; a subclass labels one volume.

    Args:
        inferer: runs the boxes' network.
        localizer: finds the head.

    Attributes:
        doubts: what is not certain about the last input, a sentence each.
        pose: of the head in the last input; None where none was found.
    """

    def __init__(self, inferer: Callable[..., Any], localizer: HeadLocalizer) -> None:
        super().__init__()
        self.inferer, self.localizer = inferer, localizer
        self.doubts: tuple[str, ...] = ()
        self.pose: HeadPose | None = None

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Label ``inputs`` (B, 1, H, W, D), x to the right, y to the front, z up.

        Returns:
            Logits (B, K, H, W, D), the logarithms of probabilities; class 0 is the background.

        Raises:
            UsageError: more than one channel.
        """
        if inputs.dim() != 5 or inputs.shape[1] != 1:
            raise UsageError(f"inputs: {tuple(inputs.shape)}; expected volumes of one channel, (B, 1, H, W, D).")
        self.doubts = ()
        volumes = inputs.as_subclass(Tensor)
        logits = torch.stack([self._label(volume, network, *args, **kwargs) for volume in volumes])
        return convert_to_dst_type(logits, inputs, dtype=logits.dtype)[0]

    @abstractmethod
    def _label(self, volume: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Label one head, (1, H, W, D) to (K, H, W, D)."""

    def _doubt(self, text: str) -> None:
        logger.warning("%s", text)
        self.doubts = (*self.doubts, text)
