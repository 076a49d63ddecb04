"""Say which labelled structures of a head are plausible, each by itself and as a left and right pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import max_pool3d

from monai_vit3d.transforms.oblique_grid import ObliqueGrid
from monai_vit3d.transforms.similarity import turn_degrees

from .head_localizer import ODD_TURN_DEGREES, HeadPose, turn_doubts


@dataclass(frozen=True)
class SideLimits:
    """What a structure and its pair must be like to be taken for found.

    Args:
        volume_ml: of a side.
        move_mm: at most, from where the head's pose has its centre to that of the labels.
        probability: at least, the mean over the labelled voxels of that of their class.
        flat: at most, the share of the labelled voxels around which the image has one value only.
        certain_move_mm: as ``move_mm``, for a side whose pair was not found, and for both in a head that lies otherwise
            than its header says or whose structures do not lie as in a head.
        certain_probability: as ``probability``, for these.
        apart_mm: of the two centres.
        level_mm: at most, how far one centre lies above or in front of the other in the upright head.
    """

    volume_ml: tuple[float, float] = (1.0, 7.0)
    move_mm: float = 20.0
    probability: float = 0.87
    flat: float = 0.1
    certain_move_mm: float = 15.0
    certain_probability: float = 0.9
    apart_mm: tuple[float, float] = (40.0, 70.0)
    level_mm: float = 18.0


@dataclass(frozen=True)
class LabelledSide:
    """A side's labels in its box.

    Args:
        name: of the structure.
        grid: of the box.
        probabilities: (classes, *grid.size).
        labels: (1, *grid.size) classes.
        centre_mm: (3,) of the labels, in the volume's millimetres.
        flat: the share of the labelled voxels around which the image has one value only.
    """

    name: str
    grid: ObliqueGrid
    probabilities: Tensor
    labels: Tensor
    centre_mm: Tensor
    flat: float

    @property
    def volume_ml(self) -> float:
        """Volume of all labels."""
        return int((self.labels > 0).sum()) * self.grid.spacing_mm**3 / 1000

    @property
    def probability(self) -> float:
        """Mean over the labelled voxels of the largest probability; 0 without labels."""
        inside = self.labels[0] > 0
        return float(self.probabilities.amax(0)[inside].mean()) if inside.any() else 0.0


def flat_share(image: Tensor, labels: Tensor) -> float:
    """Compute the share of labelled voxels that equal all their neighbours, as in air that was set to 0.

    Args:
        image: (1, H, W, D).
        labels: (1, H, W, D), 0 where nothing is labelled.
    """
    highest = max_pool3d(image[None], 3, 1, 1)[0]
    lowest = -max_pool3d(-image[None], 3, 1, 1)[0]
    inside = labels > 0
    return float((highest == lowest)[inside].float().mean()) if inside.any() else 0.0


def plausible_sides(
    sides: Mapping[str, LabelledSide], expected_mm: Mapping[str, Tensor], pose: HeadPose, limits: SideLimits
) -> tuple[dict[str, LabelledSide], list[str]]:
    """Select the sides that are plausible.

    Args:
        sides: name and labels of each.
        expected_mm: where the head's pose has the centre of each, (3,).
        pose: of the head.
        limits: what they must be like.

    Returns:
        the sides that are kept, and what is not certain, a sentence each.
    """
    degrees, doubts = turn_degrees(pose.fit.rotation), turn_doubts(pose)
    moved_mm = {name: float((side.centre_mm - expected_mm[name]).norm()) for name, side in sides.items()}
    kept = {}
    for name, side in sides.items():
        faults = _faults(side, moved_mm[name], limits, certain=degrees > ODD_TURN_DEGREES or not pose.good)
        if faults:
            doubts.append(f"the {name} was not found for certain and is left out: {', '.join(faults)}")
        else:
            kept[name] = side
    if len(kept) == 2:
        first, second = kept.values()
        faults = _pair_faults(first, second, pose, limits)
        if faults:
            doubts.append(f"the {' and '.join(kept)} were not found for certain and are left out: {', '.join(faults)}")
            kept = {}
    elif len(kept) < len(sides):
        for name, side in list(kept.items()):
            faults = _alone_faults(side, moved_mm[name], degrees, pose, limits)
            if faults:
                doubts.append(f"the {name}, found without its pair, is left out, too: {', '.join(faults)}")
                del kept[name]
    return kept, doubts


def _faults(side: LabelledSide, moved_mm: float, limits: SideLimits, certain: bool) -> list[str]:
    """List what is implausible about a side by itself, which has to be ``certain`` in an odd pose."""
    low, high = limits.volume_ml
    move_mm = limits.certain_move_mm if certain else limits.move_mm
    probability = limits.certain_probability if certain else limits.probability
    faults = []
    if not low <= side.volume_ml <= high:
        faults.append(f"{side.volume_ml:.2f} ml (expected {low:g} to {high:g})")
    if moved_mm > move_mm:
        faults.append(
            f"its labels lie {moved_mm:.0f} mm from where the head's pose has it (expected at most {move_mm:g})"
        )
    if side.probability < probability:
        faults.append(f"mean probability {side.probability:.2f} (expected at least {probability:g})")
    if side.flat > limits.flat:
        faults.append(
            f"{side.flat:.0%} of it lies where the image has one value only (expected at most {limits.flat:.0%})"
        )
    return faults


def _alone_faults(side: LabelledSide, moved_mm: float, degrees: float, pose: HeadPose, limits: SideLimits) -> list[str]:
    """List what is implausible about a side whose pair was not found, which anything may look like."""
    faults = []
    if not pose.good:
        faults.append("the image may show no head")
    if degrees > ODD_TURN_DEGREES:
        faults.append("the head does not lie as the header says")
    return [*faults, *_faults(side, moved_mm, limits, certain=True)]


def _pair_faults(first: LabelledSide, second: LabelledSide, pose: HeadPose, limits: SideLimits) -> list[str]:
    """List what is implausible about the left and the right side together."""
    between = (second.centre_mm - first.centre_mm) @ pose.fit.rotation  # along the upright head's axes
    low, high = limits.apart_mm
    apart_mm, uneven_mm = float(between.norm()), float(between[1:].abs().max())
    faults = []
    if not low <= apart_mm <= high:
        faults.append(f"they lie {apart_mm:.0f} mm apart (expected {low:g} to {high:g})")
    if uneven_mm > limits.level_mm:
        faults.append(
            f"one lies {uneven_mm:.0f} mm above or in front of the other (expected at most {limits.level_mm:g})"
        )
    if float(between[0]) < 0:
        faults.append("left lies to the right of right")
    return faults
