"""An inferer that returns labels: it holds a rolling band of windows instead of classes x volume."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from monai_vit3d.transforms import argmax_classes, require_finite_scores

from .output_maps import OUTPUT_MAPS
from .stitch import CannotStitch, can_stitch, stitch_windows
from .tta import known_activation


class LabelInferer(Inferer):
    """Run another inferer and reduce its logits to labels, the same as their argmax to the last voxel.

    Around MONAI's ``SlidingWindowInferer`` a band of windows is held at a time (:func:`stitch_windows`); any inferer
    that :func:`can_stitch` does not know is run as it is, and its output reduced. In a bundle this replaces its
    inferer and the ``Activationsd`` and ``AsDiscreted`` after it.

    Args:
        inferer: runs the network: bare, or in an :class:`AutocastInferer` or :class:`SpacingInferer`.
        activation: ``"softmax"``: the label is the class of the highest score. ``"sigmoid"``: each channel is 1 where
            its probability is 0.5 or more, as by ``AsDiscreted(threshold=0.5)``.
        entropy: whether to append :func:`predictive_entropy` as a channel.
        probabilities: whether to append the probabilities of all classes as channels.

    Raises:
        UsageError: another activation.

    Example:
        >>> inferer = LabelInferer(SlidingWindowInferer((96, 96, 96), sw_batch_size=1, overlap=0.5, mode="gaussian"))
        >>> labels = inferer(ct, network)  # (B, 1, H, W, D) uint8

        or ``"_target_": "monai_vit3d.inferers.LabelInferer"``, with the bundle's own under ``"inferer"``
    """

    def __init__(
        self, inferer: Inferer, activation: str = "softmax", entropy: bool = False, probabilities: bool = False
    ) -> None:
        super().__init__()
        self.inferer, self.activation = inferer, known_activation(activation)
        chosen = {"entropy": entropy, "prob": probabilities}
        self.maps = [name for name, is_chosen in chosen.items() if is_chosen]

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Run ``network`` over ``inputs`` ``(B, C, H, W, D)``.

        Returns:
            ``(B, 1, H, W, D)``, or ``(B, K, H, W, D)`` with ``"sigmoid"``: uint8, or int16 or int32 for many classes,
            on the inputs' device, with their metadata. With entropy or probabilities float32: labels, then these.

        Raises:
            ImageError: the network's output is NaN or infinite.
        """
        labels = None
        if can_stitch(self.inferer) and not args and not kwargs:
            with suppress(CannotStitch):
                images = [inputs[i : i + 1] for i in range(len(inputs))]
                labels = torch.cat([stitch_windows(one, network, self.inferer, self._reduce) for one in images])
        if labels is None:
            logits = torch.as_tensor(self.inferer(inputs, network, *args, **kwargs)).as_subclass(Tensor)
            labels = torch.cat([self._reduce(one) for one in logits.split(1)])
        return convert_to_dst_type(labels, inputs, dtype=labels.dtype)[0]

    def _reduce(self, logits: Tensor) -> Tensor:
        """Reduce (1, K, h, W, D) to labels and maps (1, C, h, W, D)."""
        logits, softmax = require_finite_scores(logits), self.activation == "softmax"
        labels = argmax_classes(logits[0])[None, None] if softmax else (logits.float().sigmoid() >= 0.5).to(torch.uint8)
        maps = [OUTPUT_MAPS[name].compute(logits, logits.shape[1], self.activation) for name in self.maps]
        return torch.cat([labels.float(), *maps], 1).float() if maps else labels
