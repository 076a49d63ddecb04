"""Turn logits into labels, plane by plane, and what the last step leaves into whole numbers."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_vit3d.data.errors import BundleError
from monai_vit3d.inferers import OUTPUT_MAPS, PredictionEntropy
from monai_vit3d.transforms import LabelInverter, argmax, require_finite_scores

from .postprocessing import Postprocessing, apply_steps, label_rule

SCORES_PER_SLAB = 2**22  # logits that are turned into labels at a time
_DECIDED = {
    "softmax": "the bundle leaves a score for each class; written is the label of the highest",
    "sigmoid": "the bundle leaves probabilities; written are masks where they are 0.5 and above",
}


class VoxelwisePostprocessing:
    """Apply the voxelwise part of a bundle's postprocessing: logits to labels, and further maps as channels.

    Args:
        postprocessing: the bundle's.
        uncertainty: ``"entropy"``, ``"variance"`` (then the network is a :class:`FlipSpread`) or None.
        probabilities: whether to keep them.
        inverter: for a bundle that inverts before it makes labels; it gets the output of the steps.
        entropy: gets the logits, too.
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
        """Turn (1, C, h, W, D) into (1, C', h, W, D), labels then maps; few planes at a time, as each step copies."""
        planes = max(1, SCORES_PER_SLAB * logits.shape[2] // logits.numel())
        return torch.cat([self._postprocess(part) for part in logits.split(planes, dim=2)], dim=2)

    def _postprocess(self, logits: Tensor) -> Tensor:
        self.classes = classes = logits.shape[1] // 3 if self.needs_flips else logits.shape[1]
        mean = require_finite_scores(logits[:, :classes].float())
        if self.entropy is not None:
            self.entropy.add(mean)
        labels = self._labels(mean[0])[None]
        maps = {name: OUTPUT_MAPS[name].compute(logits, classes, self.activation) for name in self.maps}
        self.sizes = {"labels": labels.shape[1], **{kind: value.shape[1] for kind, value in maps.items()}}
        if not maps:
            return labels.to(torch.uint8) if self.small and classes <= 256 else labels
        return torch.cat([labels.float(), *maps.values()], dim=1)

    def _labels(self, logits: Tensor) -> Tensor:
        if self.completed and self.activation == "softmax" and len(logits) == 1:
            raise no_labels(1)
        if self.inverter is not None:
            return self.inverter.feed(apply_steps(self.steps, logits))
        if len(self.steps) == 1 and label_rule(self.steps) is argmax:
            return argmax(logits)
        return apply_steps(self.steps, logits)

    def split(self, channels: Tensor) -> dict[str, Tensor]:
        """Split (C', H, W, D) into ``"labels"`` and maps by name."""
        return dict(zip(self.sizes, channels.split(list(self.sizes.values()))))


def no_labels(maps: int) -> BundleError:
    """Return the error for a postprocessing whose result cannot be read as labels."""
    return BundleError(
        f"the bundle's postprocessing leaves {maps} map(s) of fractions; expected labels. Add an AsDiscreted with "
        "argmax or threshold to it."
    )


def whole_numbers(pred: Any, postprocessing: Postprocessing) -> tuple[Tensor, str | None]:
    """Turn the result of a bundle's postprocessing into labels.

    Args:
        pred: (C, h, w, d) the result.
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
        # probabilities that happen to be 0 and 1 are not masks
        if not torch.equal(whole, labels) or (several and postprocessing.only_scores and not decided):
            probabilities = float(labels.min()) >= 0 and float(labels.max()) <= 1
            if not (several if softmax else probabilities):
                raise no_labels(len(labels))
            whole, decided = labels.argmax(0, keepdim=True) if softmax else labels >= 0.5, True
        labels = whole
    warning = _DECIDED[postprocessing.activation] if decided else None
    small = labels.numel() == 0 or (int(labels.min()) >= 0 and int(labels.max()) < 256)
    return labels.to("cpu", torch.uint8 if small else torch.int32), warning
