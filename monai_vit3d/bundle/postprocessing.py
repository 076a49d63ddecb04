"""What a bundle's steps after the network mean, worked out once when the bundle is loaded.

MONAI runs them one after another on whole maps, classes x volume in float32. Here the leading steps that treat each
voxel alone run on planes as soon as their windows are stitched, and class scores that go back to the file's grid are
interpolated only where labels meet. Both are done exactly where the labels are MONAI's; all other steps run as MONAI
runs them, in the bundle's own order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    FillHolesd,
    Invertd,
    InvertibleTransform,
    KeepLargestConnectedComponentd,
    RemoveSmallObjectsd,
    SaveImaged,
)
from torch import Tensor

from ..data.errors import BundleError
from ..inferers import LabelInferer, unwrap_inferer
from ..inferers.spacing import inferer_wrappers
from ..transforms import argmax

PRED = "pred"  # the network's output in MONAI's evaluators
# they drop labels or spread them, and leave the values as they are
KEEP_LABELS = (KeepLargestConnectedComponentd, FillHolesd, RemoveSmallObjectsd)
# their inverses take voxels as they are, or zeros, if they interpolate by nearest neighbour
_MOVING = (
    "monai.transforms.spatial.",
    "monai.transforms.croppad.",
    "monai.transforms.utility.dictionary.ToTensord",
    "monai_vit3d.transforms.spacing.",
)


@dataclass(frozen=True, eq=False)
class Postprocessing:
    """A bundle's postprocessing: ``voxelwise``, then ``inversion`` and ``decision``, then ``rest``.

    Args:
        steps: all steps up to the one that saves, in the bundle's order, without saving.
        key: of the item that is saved.
        voxelwise: the leading steps that treat each voxel alone; they run on planes.
        inversion: the Invertd of interpolated class scores that follows directly; None where there is none.
        decision: the steps behind ``inversion`` that make labels of the scores on the file's grid.
        rest: the steps that follow, on whole volumes.
        activation: ``"softmax"`` for classes that exclude each other, ``"sigmoid"`` for masks that may overlap.
        completed: whether the last step of ``steps`` is ours, as the bundle itself would write probabilities.
    """

    steps: tuple[Any, ...] = ()
    key: str = PRED
    voxelwise: tuple[Any, ...] = ()
    inversion: Invertd | None = None
    decision: tuple[Any, ...] = ()
    rest: tuple[Any, ...] = ()
    activation: str = "softmax"
    completed: bool = False

    @classmethod
    def of(cls, steps: Iterable[Any]) -> Postprocessing:
        """Work out what the steps of a bundle mean.

        Args:
            steps: the bundle's, flattened, with those that save.
        """
        own, key = _until_saved(list(steps))
        own, completed = _completed(own)
        found = cls(tuple(own), key, activation=activation_of(own), completed=completed)
        lead = tuple(takewhile(is_voxelwise, own))
        rest = tuple(own[len(lead) :])
        found = replace(found, voxelwise=lead, rest=rest)
        if not rest or not _inverts_scores(rest[0]):
            return found
        behind = _through_first_labels(rest[1:])
        after = rest[1 + len(behind) :]
        if rest[0].nearest_interp[0]:
            swapped = bool(behind) and _commutes_with_nearest(rest[0], behind)
            return replace(found, voxelwise=lead + behind, rest=(rest[0], *after)) if swapped else found
        if decision(behind) is None:
            return found
        return replace(found, inversion=rest[0], decision=behind, rest=after)

    @property
    def makes_labels(self) -> bool:
        """Whether labels come out of ``voxelwise``."""
        return bool(self.voxelwise) and discretizes(self.voxelwise[-1])

    @property
    def inverts(self) -> bool:
        """Whether the bundle itself goes back to the file's grid."""
        return any(isinstance(step, Invertd) for step in self.steps)

    @property
    def inverts_scores(self) -> bool:
        """Whether class scores go back to the file's grid, and not labels."""
        return not self.makes_labels and self.inverts

    @property
    def only_scores(self) -> bool:
        """Whether the bundle's own steps leave logits or probabilities."""
        return all(isinstance(step, Activationsd | Invertd) for step in self.own_steps)

    @property
    def own_steps(self) -> tuple[Any, ...]:
        """The bundle's own steps, all that follow a classifier."""
        return self.steps[:-1] if self.completed else self.steps

    def masks(self, classes: int) -> int:
        """Channels of the labels that ``voxelwise`` and ``decision`` make; 1 where they make none."""
        if not self.makes_labels and self.inversion is None:
            return 1
        return len(through((*self.voxelwise, *self.decision), torch.zeros(classes, 1, 1, 1)))

    def behind_scores(self) -> tuple[Any, ...]:
        """All that follows ``voxelwise`` where MONAI inverts the scores."""
        return (self.inversion, *self.decision, *self.rest) if self.inversion is not None else self.rest


def is_voxelwise(step: Any) -> bool:
    """Whether a step gives each voxel of ``pred``, and of nothing else, what follows from this voxel's channels."""
    if not isinstance(step, Activationsd | AsDiscreted) or tuple(step.keys) != (PRED,):
        return False
    options = step.converter.kwargs
    if isinstance(step, Activationsd) and step.other[0] is not None:
        return False
    return options.get("dim", 0) == 0 and options.get("keepdim", True) is True


def discretizes(step: Any) -> bool:
    """Whether a step leaves whole numbers only."""
    if not isinstance(step, AsDiscreted):
        return False
    return bool(step.argmax[0]) or step.threshold[0] is not None or step.rounding[0] is not None


def decision(steps: Sequence[Any]) -> Callable[[Tensor], Tensor] | None:
    """Activations and one AsDiscreted as a function for :class:`LabelInverter`; None where it is not for that.

    Known are argmax, also of a softmax, and a threshold, also of a sigmoid.
    """
    *activations, last = steps or [None]
    if not isinstance(last, AsDiscreted) or last.to_onehot[0] is not None or last.rounding[0] is not None:
        return None
    kinds = [(bool(a.sigmoid[0]), bool(a.softmax[0]), a.other[0]) for a in activations]
    kind = "argmax" if last.argmax[0] else "threshold" if last.threshold[0] is not None else None
    if kind == "argmax" and last.threshold[0] is None and kinds in ([], [(False, True, None)]):
        return argmax
    if kind == "threshold" and kinds in ([], [(True, False, None)]):
        return lambda values: through(steps, values).to(torch.uint8)
    return None


def activation_of(steps: Iterable[Any]) -> str:
    """Which probabilities the bundle's logits stand for: of classes that exclude each other, or of each alone."""
    for step in steps:
        if isinstance(step, Activationsd):
            return "sigmoid" if step.sigmoid[0] else "softmax"
        if isinstance(step, AsDiscreted):
            return "softmax" if step.argmax[0] else "sigmoid"
    return "softmax"


def through(steps: Iterable[Callable[..., Any]], pred: Tensor) -> Tensor:
    """``pred`` after the steps, as a tensor."""
    data: dict[str, Any] = {PRED: pred}
    for step in steps:
        data = step(data)
    return torch.as_tensor(data[PRED])


def without_labels(inferer: Any) -> tuple[Any, list[Any]]:
    """A bundle's inferer without its :class:`LabelInferer`, and the steps that make the same labels behind it.

    Windows become labels here in any case; engines, flips and maps need the numbers.

    Raises:
        BundleError: one that gives maps beside the labels.
    """
    around, inner = inferer_wrappers(inferer), unwrap_inferer(inferer)
    if type(inner) is not LabelInferer:
        return inferer, []
    if inner.maps:
        raise BundleError(
            "the bundle's LabelInferer has entropy or probabilities; labels alone are needed here. Leave them out: "
            "uncertainty=entropy and probabilities=True write them."
        )
    found = inner.inferer
    for wrapper in reversed(around):
        wrapper = copy.copy(wrapper)
        wrapper.inferer, found = found, wrapper
    if inner.activation == "softmax":
        return found, [AsDiscreted(PRED, argmax=True)]
    return found, [Activationsd(PRED, sigmoid=True), AsDiscreted(PRED, threshold=0.5)]


def _until_saved(steps: list[Any]) -> tuple[list[Any], str]:
    """The steps before the last one that saves ``pred``, or what was made of it, without saving; and its key."""
    images = {key for step in steps if isinstance(step, Invertd) for key in step.orig_keys}
    saved = [(i, key) for i, step in enumerate(steps) if isinstance(step, SaveImaged) for key in step.keys]
    made = [one for one in saved if one[1] == PRED] or [one for one in saved if one[1] not in images]
    place, key = made[-1] if made else (len(steps), PRED)
    return [step for step in steps[:place] if not _saves(step)], str(key)


def _saves(step: Any) -> bool:
    """Whether a step writes files, which is the pipeline's work."""
    return isinstance(step, SaveImaged) or type(step).__name__ in ("SaveImage", "SaveClassificationd")


def _completed(steps: list[Any]) -> tuple[list[Any], bool]:
    """Steps that end with probabilities get one that makes labels of them; whether it was needed."""
    plain = all(is_voxelwise(step) or _inverts_scores(step) for step in steps)
    scores = [step for step in steps if isinstance(step, Activationsd) and (step.softmax[0] or step.sigmoid[0])]
    if not plain or not scores or any(isinstance(step, AsDiscreted) for step in steps):
        return steps, False
    rule: dict[str, Any] = {"argmax": True} if activation_of(steps) == "softmax" else {"threshold": 0.5}
    return [*steps, AsDiscreted(PRED, **rule)], True


def _inverts_scores(step: Any) -> bool:
    """Whether a step is an Invertd of ``pred`` alone that hands on what it has inverted."""
    return isinstance(step, Invertd) and tuple(step.keys) == (PRED,) and not callable(step.post_func[0])


def _through_first_labels(steps: Sequence[Any]) -> tuple[Any, ...]:
    """The leading voxelwise steps with the first that makes labels as their last; none where there is none."""
    lead = tuple(takewhile(is_voxelwise, steps))
    count = next((i for i, step in enumerate(lead, 1) if discretizes(step)), 0)
    return lead[:count]


def _commutes_with_nearest(invert: Invertd, steps: tuple[Any, ...]) -> bool:
    """Whether voxelwise steps give the same before an inversion by nearest neighbour as behind it.

    They do if voxels are only moved, and if zeros, which come in where preprocessing has cropped, stay zeros.
    """
    own = invert.transform
    transforms = own.flatten().transforms if isinstance(own, Compose) else [own]
    kinds = [type(step) for step in transforms if isinstance(step, InvertibleTransform)]
    moved = all(f"{kind.__module__}.{kind.__qualname__}".startswith(_MOVING) for kind in kinds)
    return moved and not bool(through(steps, torch.zeros(2, 1, 1, 1)).any())
