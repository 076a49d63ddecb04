"""Interpret a bundle's steps after the network, once, when the bundle is loaded.

MONAI runs them one after another on whole maps, classes x volume in float32. Here the leading steps that treat each
voxel alone run on planes as soon as their windows are stitched, and class scores that go back to the file's grid are
interpolated only at label borders. Both are done only where the labels equal MONAI's; all other steps run as MONAI
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

from monai_vit3d.data.errors import BundleError
from monai_vit3d.inferers import LabelInferer, unwrap_inferer
from monai_vit3d.inferers.spacing import inferer_wrappers
from monai_vit3d.transforms import argmax

PRED = "pred"  # the network's output in MONAI's evaluators
# steps that remove or spread labels, and make no new values
KEEP_LABELS = (KeepLargestConnectedComponentd, FillHolesd, RemoveSmallObjectsd)
# transforms whose inverses only move voxels, or add zeros, if they interpolate by nearest neighbour
_VOXEL_MOVING = (
    "monai.transforms.spatial.",
    "monai.transforms.croppad.",
    "monai.transforms.utility.dictionary.ToTensord",
    "monai_vit3d.transforms.spacing.",
)


@dataclass(frozen=True, eq=False)
class Postprocessing:
    """A bundle's postprocessing: ``voxelwise``, then ``inversion`` and ``decision``, then ``rest``.

    Args:
        steps: all steps before the one that saves, in the bundle's order.
        key: under which the labels are saved.
        voxelwise: the leading steps that treat each voxel alone; they run on planes.
        inversion: the Invertd of interpolated class scores that follows directly; None where there is none.
        decision: the steps after ``inversion`` that make labels of the scores on the file's grid.
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
        """Interpret the steps of a bundle.

        Args:
            steps: flattened, including those that save.
        """
        before_saving, key = _until_saved(list(steps))
        before_saving, completed = _completed(before_saving)
        voxelwise = tuple(takewhile(is_voxelwise, before_saving))
        rest = tuple(before_saving[len(voxelwise) :])
        activation = activation_of(before_saving)
        plain = cls(tuple(before_saving), key, voxelwise, None, (), rest, activation, completed)
        if not rest or not _inverts_scores(rest[0]):
            return plain
        inversion, decision = rest[0], _until_first_labels(rest[1:])
        after = rest[1 + len(decision) :]
        if inversion.nearest_interp[0]:
            swapped = bool(decision) and _commutes_with_nearest(inversion, decision)
            return replace(plain, voxelwise=voxelwise + decision, rest=(inversion, *after)) if swapped else plain
        if label_rule(decision) is None:
            return plain
        return replace(plain, inversion=inversion, decision=decision, rest=after)

    @property
    def makes_labels(self) -> bool:
        """Whether ``voxelwise`` ends with labels."""
        return bool(self.voxelwise) and discretizes(self.voxelwise[-1])

    @property
    def inverts(self) -> bool:
        """Whether the bundle's own steps go back to the file's grid."""
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
        """The bundle's own steps; after a classifier, only these run."""
        return self.steps[:-1] if self.completed else self.steps

    @property
    def rule(self) -> Callable[[Tensor], Tensor] | None:
        """The rule by which ``decision`` makes labels of scores; None without ``decision``."""
        return label_rule(self.decision)

    def masks(self, classes: int) -> int:
        """Count the channels of the labels that ``voxelwise`` and ``decision`` make; 1 where they make none."""
        if not self.makes_labels and self.inversion is None:
            return 1
        return len(apply_steps((*self.voxelwise, *self.decision), torch.zeros(classes, 1, 1, 1)))

    def behind_scores(self) -> tuple[Any, ...]:
        """List all steps after ``voxelwise``, for cases whose scores MONAI inverts."""
        return (self.inversion, *self.decision, *self.rest) if self.inversion is not None else self.rest


def is_voxelwise(step: Any) -> bool:
    """Return whether a step changes only ``pred``, and each voxel of it by its own channels alone."""
    if not isinstance(step, Activationsd | AsDiscreted) or tuple(step.keys) != (PRED,):
        return False
    options = step.converter.kwargs
    if isinstance(step, Activationsd) and step.other[0] is not None:
        return False
    return options.get("dim", 0) == 0 and options.get("keepdim", True) is True


def discretizes(step: Any) -> bool:
    """Return whether a step leaves whole numbers only."""
    if not isinstance(step, AsDiscreted):
        return False
    return bool(step.argmax[0]) or step.threshold[0] is not None or step.rounding[0] is not None


def label_rule(steps: Sequence[Any]) -> Callable[[Tensor], Tensor] | None:
    """Return activations and one AsDiscreted as a function for :class:`LabelInverter`.

    These are argmax, also of a softmax, and a threshold, also of a sigmoid; None for all others.
    """
    *activations, last = steps or [None]
    if not isinstance(last, AsDiscreted) or last.to_onehot[0] is not None or last.rounding[0] is not None:
        return None
    kinds = [(bool(a.sigmoid[0]), bool(a.softmax[0]), a.other[0]) for a in activations]
    kind = "argmax" if last.argmax[0] else "threshold" if last.threshold[0] is not None else None
    if kind == "argmax" and last.threshold[0] is None and kinds in ([], [(False, True, None)]):
        return argmax
    if kind == "threshold" and kinds in ([], [(True, False, None)]):
        return lambda scores: apply_steps(steps, scores).to(torch.uint8)
    return None


def activation_of(steps: Iterable[Any]) -> str:
    """Return ``"softmax"`` if the bundle's classes exclude each other, ``"sigmoid"`` if they may overlap."""
    for step in steps:
        if isinstance(step, Activationsd):
            return "sigmoid" if step.sigmoid[0] else "softmax"
        if isinstance(step, AsDiscreted):
            return "softmax" if step.argmax[0] else "sigmoid"
    return "softmax"


def apply_steps(steps: Iterable[Callable[..., Any]], pred: Tensor) -> Tensor:
    """Run dictionary transforms on ``pred`` alone."""
    data: dict[str, Any] = {PRED: pred}
    for step in steps:
        data = step(data)
    return torch.as_tensor(data[PRED])


def without_labels(inferer: Any) -> tuple[Any, list[Any]]:
    """Replace a bundle's :class:`LabelInferer` by the inferer in it and steps that make the same labels.

    Prediction makes labels of windows in any case; engines, flips and maps need the logits.

    Returns:
        The inferer, and the steps; none where there is no LabelInferer.

    Raises:
        BundleError: a LabelInferer that gives maps besides the labels.
    """
    wrappers, inner = inferer_wrappers(inferer), unwrap_inferer(inferer)
    if type(inner) is not LabelInferer:
        return inferer, []
    if inner.maps:
        raise BundleError(
            "the bundle's LabelInferer has entropy or probabilities; expected labels alone here. Leave them out: "
            "uncertainty=entropy and probabilities=True write them."
        )
    wrapped = inner.inferer
    for wrapper in map(copy.copy, reversed(wrappers)):
        wrapper.inferer, wrapped = wrapped, wrapper
    if inner.activation == "softmax":
        return wrapped, [AsDiscreted(PRED, argmax=True)]
    return wrapped, [Activationsd(PRED, sigmoid=True), AsDiscreted(PRED, threshold=0.5)]


def _until_saved(steps: list[Any]) -> tuple[list[Any], str]:
    """Return the steps before the last one that saves ``pred`` or a result of it, without saving steps; and its key."""
    images = {key for step in steps if isinstance(step, Invertd) for key in step.orig_keys}
    saved = [(i, str(key)) for i, step in enumerate(steps) if isinstance(step, SaveImaged) for key in step.keys]
    results = [(i, key) for i, key in saved if key == PRED] or [(i, key) for i, key in saved if key not in images]
    place, key = results[-1] if results else (len(steps), PRED)
    return [step for step in steps[:place] if not _saves(step)], key


def _saves(step: Any) -> bool:
    """Return whether a step writes files, which the pipeline does itself."""
    return isinstance(step, SaveImaged) or type(step).__name__ in ("SaveImage", "SaveClassificationd")


def _completed(steps: list[Any]) -> tuple[list[Any], bool]:
    """Add a step that makes labels where the steps end with probabilities; return whether it was added."""
    plain = all(is_voxelwise(step) or _inverts_scores(step) for step in steps)
    scores = [step for step in steps if isinstance(step, Activationsd) and (step.softmax[0] or step.sigmoid[0])]
    if not plain or not scores or any(isinstance(step, AsDiscreted) for step in steps):
        return steps, False
    rule: dict[str, Any] = {"argmax": True} if activation_of(steps) == "softmax" else {"threshold": 0.5}
    return [*steps, AsDiscreted(PRED, **rule)], True


def _inverts_scores(step: Any) -> bool:
    """Return whether a step is an Invertd of ``pred`` alone, without a function on its result."""
    return isinstance(step, Invertd) and tuple(step.keys) == (PRED,) and not callable(step.post_func[0])


def _until_first_labels(steps: Sequence[Any]) -> tuple[Any, ...]:
    """Return the leading voxelwise steps up to the first that makes labels; none where no step does."""
    lead = tuple(takewhile(is_voxelwise, steps))
    count = next((i for i, step in enumerate(lead, 1) if discretizes(step)), 0)
    return lead[:count]


def _commutes_with_nearest(invert: Invertd, steps: tuple[Any, ...]) -> bool:
    """Return whether voxelwise steps give the same before and after an inversion by nearest neighbour.

    They do if voxels are only moved, and if zeros, which fill what preprocessing has cropped, stay zeros.
    """
    composed = invert.transform
    transforms = composed.flatten().transforms if isinstance(composed, Compose) else [composed]
    kinds = [type(step) for step in transforms if isinstance(step, InvertibleTransform)]
    moved = all(f"{kind.__module__}.{kind.__qualname__}".startswith(_VOXEL_MOVING) for kind in kinds)
    return moved and not bool(apply_steps(steps, torch.zeros(2, 1, 1, 1)).any())
