"""An inferer that answers with labels: a rolling band of windows in place of classes x volume."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from .argmax_classes import argmax_classes, require_finite_scores
from .stitch import CannotStitch, can_stitch, stitch_windows
from .tta import known_activation, predictive_entropy


class LabelInferer(Inferer):
    """Labels where another inferer gives the network's numbers; those of its argmax, to the last voxel.

    Around MONAI's ``SlidingWindowInferer`` a band of windows is held at a time (:func:`stitch_windows`); anything that
    :func:`can_stitch` does not know is run as it is, and its answer reduced. In a bundle it takes the place of its
    inferer and of the ``Activationsd`` and ``AsDiscreted`` behind it.

    Args:
        inferer: what runs the network: bare, or in an :class:`AutocastInferer` or :class:`SpacingInferer`.
        activation: ``"softmax"``: the likeliest class is the label. ``"sigmoid"``: a channel's
            probabilities of a half and above are 1, as ``AsDiscreted(threshold=0.5)`` has it.
        entropy: whether :func:`predictive_entropy` follows, as a channel.
        probabilities: whether each class's follow, as channels.

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
        self.entropy, self.probabilities = entropy, probabilities

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Run ``network`` over ``inputs`` ``(B, C, H, W, D)``.

        Returns:
            ``(B, 1, H, W, D)``, or ``(B, K, H, W, D)`` with ``"sigmoid"``: uint8, or int16 or int32 of many classes,
            on the inputs' device, with their metadata. With entropy or probabilities float32: labels, then these.

        Raises:
            ImageError: NaN or infinite numbers of the network.
        """
        found = None
        if can_stitch(self.inferer) and not args and not kwargs:
            with suppress(CannotStitch):
                images = [inputs[i : i + 1] for i in range(len(inputs))]
                found = torch.cat([stitch_windows(one, network, self.inferer, self._reduced) for one in images])
        if found is None:
            values = self.inferer(inputs, network, *args, **kwargs)
            found = torch.cat([self._reduced(one) for one in torch.as_tensor(values).as_subclass(Tensor).split(1)])
        return convert_to_dst_type(found, inputs, dtype=found.dtype)[0]

    def _reduced(self, logits: Tensor) -> Tensor:
        """(1, K, h, W, D) to (1, C, h, W, D)."""
        logits, softmax = require_finite_scores(logits), self.activation == "softmax"
        labels = argmax_classes(logits[0])[None, None] if softmax else (logits.float().sigmoid() >= 0.5).to(torch.uint8)
        extra = [predictive_entropy(logits, self.activation)] if self.entropy else []
        if self.probabilities:
            extra.append(logits.float().softmax(1) if softmax else logits.float().sigmoid())
        return torch.cat([labels.float(), *extra], 1).float() if extra else labels
