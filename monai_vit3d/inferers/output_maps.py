"""The maps that can be computed beside labels, a row for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .tta import ensemble_variance, predictive_entropy


class OutputMap(NamedTuple):
    """A map beside the labels.

    Attributes:
        channels: how many it has, from the number of classes.
        compute: the map (B, channels, ...) in float32 or wider, from the network's output (B, K, ...), the number of
            classes and the activation, ``"softmax"`` or ``"sigmoid"``.
        needs_flips: whether the output has to be that of a :class:`~monai_vit3d.inferers.FlipSpread`, K = 3 x classes,
            instead of the logits of all classes first.
        bids_suffix: of its file in a BIDS data set.
    """

    channels: Callable[[int], int]
    compute: Callable[[Tensor, int, str], Tensor]
    needs_flips: bool = False
    bids_suffix: str = ""


def _probabilities(output: Tensor, classes: int, activation: str) -> Tensor:
    logits = output[:, :classes].float()
    return logits.softmax(1) if activation == "softmax" else logits.sigmoid()


def _entropy(output: Tensor, classes: int, activation: str) -> Tensor:
    return predictive_entropy(output[:, :classes], activation)


def _variance(output: Tensor, classes: int, activation: str) -> Tensor:
    return ensemble_variance(output.float(), classes)


OUTPUT_MAPS = {
    "entropy": OutputMap(lambda classes: 1, _entropy, bids_suffix="entropy"),
    "variance": OutputMap(lambda classes: 1, _variance, needs_flips=True, bids_suffix="variance"),
    "prob": OutputMap(lambda classes: classes, _probabilities, bids_suffix="probseg"),
}
