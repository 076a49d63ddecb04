"""The network's output to labels: plane by plane while windows come, and whole numbers at the end."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from ..data.errors import BundleError
from ..inferers import OUTPUT_MAPS, PredictionEntropy
from ..transforms import LabelInverter, argmax, require_finite_scores
from .postprocessing import Postprocessing, decision, through

SCORES_PER_SLAB = 2**22  # of the network's numbers that are turned into labels at a time
_DECIDED = {
    "softmax": "the bundle leaves a score for each class; written is the label of the highest",
    "sigmoid": "the bundle leaves probabilities; written are masks where they are 0.5 and above",
}


class VoxelwisePostprocessing:
    """The voxelwise part of a bundle's postprocessing: logits to labels, and what else was asked for, as channels.

    Args:
        postprocessing: the bundle's.
        uncertainty: ``"entropy"``, ``"variance"`` (then the network is a :class:`FlipSpread`) or None.
        probabilities: whether to keep them.
        inverter: of a bundle that inverts before it makes labels; it gets what the steps leave.
        entropy: is shown the logits, too.
    """

    def __init__(
        self,
        postprocessing: Postprocessing,
        uncertainty: str | None,
        probabilities: bool,
        inverter: LabelInverter | None = None,
        entropy: PredictionEntropy | None = None,
    ) -> None:
        self.steps, self.activation = postprocessing.voxelwise, postprocessing.activation
        self.maps = [*([uncertainty] if uncertainty else []), *(["prob"] if probabilities else [])]
        self.needs_flips = any(OUTPUT_MAPS[name].needs_flips for name in self.maps)
        self.inverter, self.entropy = inverter, entropy
        self.makes_labels = inverter is not None or postprocessing.makes_labels
        # labels by rounding may have any size
        self.small = self.makes_labels and not any(getattr(step, "rounding", [None])[0] for step in self.steps)
        self.completed = postprocessing.completed
        self.classes = 0
        self.sizes: dict[str, int] = {}

    def __call__(self, logits: Tensor) -> Tensor:
        """(1, C, h, W, D) to (1, C', h, W, D): labels, then maps; a few planes at a time, as each step makes copies."""
        planes = max(1, SCORES_PER_SLAB * logits.shape[2] // logits.numel())
        return torch.cat([self._reduced(part) for part in logits.split(planes, dim=2)], dim=2)

    def _reduced(self, logits: Tensor) -> Tensor:
        self.classes = classes = logits.shape[1] // 3 if self.needs_flips else logits.shape[1]
        mean = require_finite_scores(logits[:, :classes].float())
        if self.entropy is not None:
            self.entropy.add(mean)
        labels = self._labels(mean[0])[None]
        extra = {name: OUTPUT_MAPS[name].compute(logits, classes, self.activation) for name in self.maps}
        self.sizes = {"labels": labels.shape[1], **{kind: value.shape[1] for kind, value in extra.items()}}
        if not extra:
            return labels.to(torch.uint8) if self.small and classes <= 256 else labels
        return torch.cat([labels.float(), *extra.values()], dim=1)

    def _labels(self, values: Tensor) -> Tensor:
        if self.completed and self.activation == "softmax" and len(values) == 1:
            raise no_labels(1)
        if self.inverter is not None:
            return self.inverter.feed(through(self.steps, values))
        if len(self.steps) == 1 and decision(self.steps) is argmax:
            return argmax(values)
        return through(self.steps, values)

    def split(self, reduced: Tensor) -> dict[str, Tensor]:
        """(C', H, W, D) into labels and maps, by kind."""
        return dict(zip(self.sizes, reduced.split(list(self.sizes.values()))))


def no_labels(maps: int) -> BundleError:
    """The error of a postprocessing whose result cannot be taken for labels."""
    return BundleError(
        f"the bundle's postprocessing leaves {maps} map(s) of fractions; labels are needed. Add an AsDiscreted with "
        "argmax or threshold to it."
    )


def whole_numbers(pred: Any, postprocessing: Postprocessing) -> tuple[Tensor, str | None]:
    """Labels from what a bundle's postprocessing left.

    Args:
        pred: (C, h, w, d).
        postprocessing: the bundle's.

    Returns:
        (C, h, w, d) uint8, or int32 where values do not fit; and a warning where the bundle itself leaves fractions.

    Raises:
        BundleError: fractions that cannot be turned into labels.
    """
    labels = pred.as_tensor() if isinstance(pred, MetaTensor) else torch.as_tensor(pred)
    several, softmax = labels.shape[0] > 1, postprocessing.activation == "softmax"
    decided = postprocessing.completed
    if labels.is_floating_point():
        whole = labels.round()
        # probabilities that happen to be 0 and 1 are no masks
        if not torch.equal(whole, labels) or (several and postprocessing.only_scores and not decided):
            probabilities = float(labels.min()) >= 0 and float(labels.max()) <= 1
            if not (several if softmax else probabilities):
                raise no_labels(len(labels))
            whole, decided = labels.argmax(0, keepdim=True) if softmax else labels >= 0.5, True
        labels = whole
    warning = _DECIDED[postprocessing.activation] if decided else None
    small = labels.numel() == 0 or (int(labels.min()) >= 0 and int(labels.max()) < 256)
    return labels.to("cpu", torch.uint8 if small else torch.int32), warning
