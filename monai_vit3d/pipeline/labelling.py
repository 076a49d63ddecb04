"""A bundle's postprocessing, as far as it turns the network's numbers into labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Activationsd, AsDiscreted, Invertd
from torch import Tensor

from ..data.errors import BundleError
from ..inferers import (
    LabelInferer,
    LabelInverter,
    PredictionEntropy,
    argmax,
    ensemble_variance,
    finite,
    predictive_entropy,
    unwrapped,
)
from ..inferers.spacing import wrappers

SLAB = 2**22  # of the network's numbers that are turned into labels at a time


class Reduction:
    """The voxelwise part of a bundle's postprocessing: logits to labels, and what else was asked for, as channels.

    Args:
        steps: the leading part of :func:`split_steps`.
        uncertainty: ``"entropy"``, ``"variance"`` (then the network is a :class:`FlipSpread`) or None.
        probabilities: whether to keep them.
        inverter: of a bundle that inverts before it makes labels; it gets what the steps leave.
        activation: see :func:`activation_of`; None is that of the steps.
        entropy: is shown the logits, too.
    """

    def __init__(
        self,
        steps: list[Any],
        uncertainty: str | None,
        probabilities: bool,
        inverter: LabelInverter | None = None,
        activation: str | None = None,
        entropy: PredictionEntropy | None = None,
    ) -> None:
        self.steps, self.uncertainty, self.probabilities = steps, uncertainty, probabilities
        self.inverter, self.activation, self.entropy = inverter, activation or activation_of(steps), entropy
        discrete = [step for step in steps if isinstance(step, AsDiscreted)]
        self.voxelwise = inverter is not None or bool(discrete)
        self.rounded = any(step.rounding[0] is not None for step in discrete)  # to labels of any size
        self.sizes: dict[str, int] = {}

    def __call__(self, logits: Tensor) -> Tensor:
        """(1, C, h, W, D) to (1, C', h, W, D): labels, then maps; a few planes at a time, as each step makes copies."""
        planes = max(1, SLAB * logits.shape[2] // logits.numel())
        return torch.cat([self._reduced(part) for part in logits.split(planes, dim=2)], dim=2)

    def _reduced(self, logits: Tensor) -> Tensor:
        classes = logits.shape[1] // 3 if self.uncertainty == "variance" else logits.shape[1]
        mean = finite(logits[:, :classes].float())
        if self.entropy is not None:
            self.entropy.add(mean)
        labels = self._labels(mean[0])[None]
        extra = self._maps(logits.float(), mean, classes)
        self.sizes = {"labels": labels.shape[1], **{kind: value.shape[1] for kind, value in extra.items()}}
        if not extra:
            return labels.to(torch.uint8) if self.voxelwise and not self.rounded and classes <= 256 else labels
        return torch.cat([labels.float(), *extra.values()], dim=1)

    def _labels(self, values: Tensor) -> Tensor:
        if self.inverter is not None:
            return self.inverter.feed(through(self.steps, values))
        if len(self.steps) == 1 and decision(self.steps) is argmax:
            return argmax(values)
        return through(self.steps, values)

    def split(self, reduced: Tensor) -> dict[str, Tensor]:
        """(C', H, W, D) into labels and maps, by kind."""
        return dict(zip(self.sizes, reduced.split(list(self.sizes.values()))))

    def _maps(self, logits: Tensor, mean: Tensor, classes: int) -> dict[str, Tensor]:
        wanted: dict[str, Tensor] = {}
        if self.uncertainty == "entropy":
            wanted["entropy"] = predictive_entropy(mean, self.activation)
        if self.uncertainty == "variance":
            wanted["variance"] = ensemble_variance(logits, classes)
        if self.probabilities:
            wanted["prob"] = mean.softmax(1) if self.activation == "softmax" else mean.sigmoid()
        return wanted


def split_steps(steps: list[Any]) -> tuple[list[Any], list[Any]]:
    """The leading steps that treat each voxel alone, and the others."""
    count = next((i for i, step in enumerate(steps) if not isinstance(step, Activationsd | AsDiscreted)), len(steps))
    return steps[:count], steps[count:]


def split_inversion(steps: list[Any]) -> tuple[list[Any], Invertd | None, list[Any]]:
    """What comes before the bundle's own Invertd, it, and what comes after; all comes before where there is none."""
    place = next((i for i, step in enumerate(steps) if isinstance(step, Invertd)), None)
    return (steps, None, []) if place is None else (steps[:place], steps[place], steps[place + 1 :])


def decision(steps: list[Any]) -> Callable[[Tensor], Tensor] | None:
    """Activations and one AsDiscreted as a function for :class:`LabelInverter`; None where it is not for that.

    Known are argmax, also of a softmax, and a threshold, also of a sigmoid.
    """
    *activations, last = steps or [None]
    if not isinstance(last, AsDiscreted) or last.to_onehot[0] is not None or last.rounding[0] is not None:
        return None
    kinds = [(bool(a.sigmoid[0]), bool(a.softmax[0]), a.other[0]) for a in activations]
    kind = "argmax" if last.argmax[0] else "threshold" if last.threshold[0] is not None else None
    if kind == "argmax" and last.threshold[0] is None and kinds in ([], [(False, True, None)]):
        known = last.converter.kwargs.get("dim", 0) == 0 and last.converter.kwargs.get("keepdim", True)
        return argmax if known and not any(a.converter.kwargs for a in activations) else None
    if kind == "threshold" and kinds in ([], [(True, False, None)]):
        return lambda values: through(steps, values).to(torch.uint8)
    return None


def without_labels(inferer: Any) -> tuple[Any, list[Any]]:
    """A bundle's inferer without its :class:`LabelInferer`, and the steps that make the same labels behind it.

    Windows become labels here in any case; engines, flips and maps need the numbers.

    Raises:
        BundleError: one that gives maps beside the labels.
    """
    around, inner = wrappers(inferer), unwrapped(inferer)
    if type(inner) is not LabelInferer:
        return inferer, []
    if inner.entropy or inner.probabilities:
        raise BundleError(
            "the bundle's LabelInferer has entropy or probabilities; labels alone are needed here. Leave them out: "
            "--uncertainty entropy and --probabilities write them."
        )
    found = inner.inferer
    for wrapper in reversed(around):
        wrapper = copy.copy(wrapper)
        wrapper.inferer, found = found, wrapper
    if inner.activation == "softmax":
        return found, [AsDiscreted("pred", argmax=True)]
    return found, [Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)]


def activation_of(steps: list[Any]) -> str:
    """Which probabilities the bundle's logits stand for: of classes that exclude each other, or of each alone."""
    for step in steps:
        if isinstance(step, Activationsd):
            return "sigmoid" if step.sigmoid[0] else "softmax"
        if isinstance(step, AsDiscreted):
            return "softmax" if step.argmax[0] else "sigmoid"
    return "softmax"


def through(steps: list[Callable[..., Any]], pred: Tensor) -> Tensor:
    """``pred`` after the steps, as a tensor."""
    data: dict[str, Any] = {"pred": pred}
    for step in steps:
        data = step(data)
    return torch.as_tensor(data["pred"])


def whole_numbers(pred: Any, activation: str, discrete: bool) -> Tensor:
    """(C, h, w, d) of whole numbers from what the bundle's postprocessing left.

    Args:
        pred: what it left.
        activation: see :func:`activation_of`; only of classes that exclude each other is the likeliest one a label.
        discrete: whether it has more than activations. If not, probabilities that happen to be 0 and 1 are no masks.

    Raises:
        BundleError: fractions that no argmax can turn into labels.
    """
    labels = pred.as_tensor() if isinstance(pred, MetaTensor) else torch.as_tensor(pred)
    if labels.is_floating_point():
        whole, several = labels.round(), labels.shape[0] > 1
        if not torch.equal(whole, labels) or (several and not discrete):
            if not several or activation == "sigmoid":
                raise BundleError(
                    f"the bundle's postprocessing leaves {labels.shape[0]} map(s) of fractions; labels are needed. Add "
                    "an AsDiscreted with argmax or threshold to it."
                )
            whole = labels.argmax(0, keepdim=True)
        labels = whole
    small = labels.numel() == 0 or (int(labels.min()) >= 0 and int(labels.max()) < 256)
    return labels.to(torch.uint8 if small else torch.int32)
