"""Label structures of a head in boxes that a coarse network finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import KeepLargestConnectedComponent, NormalizeIntensity
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.transforms.oblique_grid import ObliqueGrid, from_grid, onto_grid
from monai_vit3d.transforms.similarity import fit_similarity, turn_degrees

from .head_inferer import LEAST_PROBABILITY, HeadInferer
from .head_localizer import CENTRE_TOLERANCE_MM, HeadLocalizer, HeadPose
from .side_limits import LabelledSide, SideLimits, flat_share, plausible_sides

# what the box network tolerates: a head that is turned less is not interpolated
UPRIGHT_DEGREES = 8.0


class LocalizedInferer(HeadInferer):
    """Find structures with a :class:`HeadLocalizer`, and label each in an upright box around it.

    The box is moved onto what is labelled in it, and labelled again. A structure that is implausible by ``limits`` is
    left out of the result, and :attr:`doubts` says so.

    Args:
        inferer: runs the box's network, such as a ``SlidingWindowInferer``.
        localizer: finds the structures.
        sides: name of each structure, and of the box network's classes 1, 2, … the numbers in the result
            (``"classes"``) and the centres in an upright head in mm (``"centres_mm"``), to which the head's rotation is
            fitted once they are labelled.
        box: voxels of a box along each axis, as large as the images that the box's network was trained on.
        spacing_mm: of the input's voxels and of the boxes'.
        limits: numbers of :class:`SideLimits`; None takes those of the hippocampus.
        moves: how often a box is moved onto its labels.

    Raises:
        UsageError: structures that the localizer does not know.
    """

    def __init__(
        self,
        inferer: Callable[..., Any],
        localizer: HeadLocalizer,
        sides: Mapping[str, Mapping[str, Any]],
        box: Sequence[int],
        spacing_mm: float = 1.0,
        limits: Mapping[str, Any] | None = None,
        moves: int = 2,
    ) -> None:
        super().__init__(inferer, localizer)
        unknown = sorted(set(sides) - set(localizer.template))
        if unknown:
            raise UsageError(f"sides: {', '.join(unknown)}; expected some of {', '.join(localizer.template)}.")
        self.sides = {name: tuple(side["classes"]) for name, side in sides.items()}
        self.parts_mm = {name: torch.tensor(side["centres_mm"], dtype=torch.float64) for name, side in sides.items()}
        self.box, self.spacing_mm = (box[0], box[1], box[2]), spacing_mm
        self.limits, self.moves = SideLimits(**(limits or {})), moves
        self._normalize = NormalizeIntensity()
        self._largest = KeepLargestConnectedComponent(independent=False)

    def _label(self, volume: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Label one head, (1, H, W, D)."""
        sides = self._plausible_sides(volume.float().cpu(), network, *args, **kwargs)
        classes = 1 + max(number for numbers in self.sides.values() for number in numbers)
        logits = torch.full((classes, *volume.shape[1:]), LEAST_PROBABILITY)
        logits[0] = 1
        for name, side in sides.items():
            box, values = from_grid(side.probabilities[1:], side.grid, volume.shape[1:], [self.spacing_mm] * 3)
            for number, probability in zip(self.sides[name], values):
                logits[number][box] = torch.maximum(logits[number][box], probability)
            logits[0][box] -= values.sum(0)
        return logits.clamp_(LEAST_PROBABILITY, 1).log_()

    def _plausible_sides(
        self, volume: Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> dict[str, LabelledSide]:
        """Label the sides in the first pose that shows one, or in a later one that shows all; note pose and doubts."""
        self.pose, plausible, doubts = (
            None,
            dict[str, LabelledSide](),
            ["no head was found in the image; nothing is labelled"],
        )
        for i, pose in enumerate(self.localizer.poses(volume, [self.spacing_mm] * 3)):
            sides, texts = self._sides_at(pose, volume, network, *args, **kwargs)
            # one side alone in a later pose may be anything that looks like one
            accepted = bool(sides) if i == 0 else len(sides) == len(self.sides)
            if i == 0 or accepted:
                self.pose, doubts = pose, texts
            if accepted:
                plausible = sides
                break
        for text in doubts:
            self._doubt(text)
        return plausible

    def _sides_at(
        self, pose: HeadPose, volume: Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, LabelledSide], list[str]]:
        """Label the sides of a head in a pose; those that are plausible, and the doubts."""

        def label(centres: Mapping[str, Tensor], rotation: Tensor) -> dict[str, LabelledSide]:
            return {
                name: self._side(name, centre, rotation, volume, network, *args, **kwargs)
                for name, centre in centres.items()
            }

        expected = {name: pose.fit(self.localizer.template[name]) for name in self.sides}
        rotation = _unless_small(pose.fit.rotation)
        sides = label(expected, rotation)
        refined = self._refined(sides)
        if refined is not None and not torch.equal(refined, rotation):
            sides = label({name: side.centre_mm for name, side in sides.items()}, refined)
        return plausible_sides(sides, expected, pose, self.limits)

    def _refined(self, sides: Mapping[str, LabelledSide]) -> Tensor | None:
        """Fit the head's rotation to the centres of all labelled parts; None where parts are missing."""
        expected, seen = [], []
        for name, side in sides.items():
            for part, centre in enumerate(self.parts_mm[name], 1):
                places = (side.labels[0] == part).nonzero().double()
                if not len(places):
                    return None
                expected.append(centre)
                seen.append(side.grid.to_volume_mm(places.mean(0)))
        if len(expected) < 3:
            return None
        return _unless_small(fit_similarity(torch.stack(expected), torch.stack(seen), CENTRE_TOLERANCE_MM)[0].rotation)

    def _side(
        self, name: str, centre: Tensor, rotation: Tensor, volume: Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> LabelledSide:
        """Label one side, its box moved onto what is labelled in it until it stays."""
        moved = self._grid(centre, rotation)
        for _ in range(self.moves + 1):
            grid = moved
            image = torch.as_tensor(self._normalize(onto_grid(volume, [self.spacing_mm] * 3, grid)))
            device = next((p.device for p in network.parameters()), torch.device("cpu"))
            logits = torch.as_tensor(self.inferer(image[None].to(device), network, *args, **kwargs))[0]
            probabilities = logits.float().softmax(0).cpu()
            raw = probabilities.argmax(0, keepdim=True)
            labels = torch.as_tensor(self._largest(raw)) if raw.any() else raw
            if not labels.any():
                break
            centre = grid.to_volume_mm(labels[0].nonzero().double().mean(0))
            moved = self._grid(centre, rotation)
            if (moved.centre_mm - grid.centre_mm).norm() < self.spacing_mm / 2:
                break
        probabilities = torch.where((raw > 0) & (labels == 0), 0.0, probabilities)  # other pieces
        return LabelledSide(name, grid, probabilities, labels, centre, flat_share(image, labels))

    def _grid(self, centre: Tensor, rotation: Tensor) -> ObliqueGrid:
        """Make a box's grid; of an upright one the voxels are the volume's own."""
        if torch.equal(rotation, torch.eye(3, dtype=torch.float64)):
            middle = (torch.tensor(self.box, dtype=torch.float64) - 1) / 2
            centre = ((centre / self.spacing_mm - middle).round() + middle) * self.spacing_mm
        return ObliqueGrid(centre, rotation, self.box, self.spacing_mm)


def _unless_small(rotation: Tensor) -> Tensor:
    """Return a rotation, or none where it is small enough for the box's network: voxels stay what they are."""
    return rotation if turn_degrees(rotation) > UPRIGHT_DEGREES else torch.eye(3, dtype=torch.float64)
