"""Locate the structures and the pose of a head by a coarse network and a template of the structures' centres."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from monai.transforms import ScaleIntensityRangePercentiles
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.transforms.oblique_grid import ObliqueGrid, onto_grid
from monai_vit3d.transforms.similarity import Similarity, fit_similarity, turn_degrees
from monai_vit3d.transforms.soft_centres import soft_centres

FINER = 2  # points along each axis that are averaged for a voxel of the coarse grid
CENTRE_TOLERANCE_MM = 8.0  # structures farther from the fit than this count less in it
LEAST_PEAK = 0.04  # a structure whose probability is nowhere more is not found
GOOD_RESIDUAL_MM = 6.0  # of a head's structures from the template's, as the median; worse is a head that lies otherwise
GOOD_SHARE = 0.7  # of the structures that are found
GOOD_SCALE = (0.6, 1.5)  # of the head, the template's being 1
MOST_POSES = 3  # that are offered after the looks from all sides
ODD_TURN_DEGREES = 50.0  # header and anatomy that differ by more are worth a word
SAME_TURN_DEGREES = 30.0  # poses that differ by less are one


@dataclass(frozen=True)
class HeadPose:
    """Where the structures of a head are.

    Args:
        centres_mm: name and centre, (3,), of each structure that was found, in the volume's own millimetres.
        fit: the template's millimetres to the volume's.
        residual_mm: the median distance of the centres from the template's after the fit.
        good: whether most structures were found, near to their places in a head.
    """

    centres_mm: dict[str, Tensor]
    fit: Similarity
    residual_mm: float
    good: bool


class HeadLocalizer(nn.Module):
    """Locate the structures of a head in any pose and, as far as its network was trained on them, of any contrast.

    The network labels the head on a coarse grid; the centres of its structures are fitted to a template's, and it
    looks once more at the head, upright this time. Where the first fit is poor, or another pose is asked for, the head
    is looked at from each of the 24 sides, as its header may be wrong. Sides come from the anatomy as the voxels have
    it: a mirror image has left and right exchanged, and nothing in it says so.

    Args:
        network: ``(1, 1, *size)`` brightness from 0 to 1 to logits ``(1, 1 + structures, *size)``.
        template_mm: name and centre of each structure in an upright head, in the order of the network's classes,
            x to the right, y to the front, z up. Structures without a centre (None) do not take part in the fit.
        size: voxels along each axis of the coarse grid, which is a cube.
        spacing_mm: of the coarse grid's voxels.

    Raises:
        UsageError: fewer than three centres, or sides of several lengths.
    """

    def __init__(
        self,
        network: nn.Module,
        template_mm: Mapping[str, Sequence[float] | None],
        size: Sequence[int] = (64, 64, 64),
        spacing_mm: float = 4.0,
    ) -> None:
        super().__init__()
        self.network, self.spacing_mm = network.eval(), spacing_mm
        self.size = (size[0], size[1], size[2])
        self.names = tuple(template_mm)
        self.template = {
            name: torch.tensor(list(centre), dtype=torch.float64) for name, centre in template_mm.items() if centre
        }
        if len(set(self.size)) > 1:
            raise UsageError(f"size={self.size}; expected one number three times: a head is looked at from all sides.")
        if len(self.template) < 3:
            raise UsageError(f"template_mm has {len(self.template)} centres; expected three or more.")
        self.brightness = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)

    def forward(self, volume: Tensor, spacing_mm: Sequence[float]) -> HeadPose | None:
        """Locate the structures: the first of :meth:`poses`; None where no head was found.

        Args:
            volume: (1, H, W, D) floats, x to the right, y to the front, z up as far as its header is true.
            spacing_mm: of its voxels.
        """
        return next(self.poses(volume, spacing_mm), None)

    @torch.no_grad()
    def poses(self, volume: Tensor, spacing_mm: Sequence[float]) -> Iterator[HeadPose]:
        """Yield poses that the head may have, one by one, each computed when it is requested.

        The first is that in which it lies as its header says, if that look is good; then come those from all of the 24
        sides, the best first, at most ``MOST_POSES`` that differ.

        Args:
            volume: as for :meth:`forward`.
            spacing_mm: as there.
        """
        middle = (torch.tensor(volume.shape[1:], dtype=torch.float64) - 1) / 2
        middle = middle * torch.tensor(list(spacing_mm), dtype=torch.float64)

        def grid_at(centre: Tensor, rotation: Tensor) -> ObliqueGrid:
            return ObliqueGrid(centre, rotation, self.size, self.spacing_mm)

        def look_upright(pose: HeadPose) -> HeadPose:
            centre = pose.fit(torch.stack(tuple(self.template.values())).mean(0))
            grid = grid_at(centre, pose.fit.rotation)
            again = self._look(onto_grid(volume, spacing_mm, grid, FINER), grid)
            return pose if again is None else max((pose, again), key=_merit)

        turns = right_angle_turns()
        image = onto_grid(volume, spacing_mm, grid_at(middle, turns[0]), FINER)
        level = self._look(image, grid_at(middle, turns[0]))
        if level is not None and level.good:
            yield look_upright(level)
        looks = (level, *(self._look(turned_image(image, turn), grid_at(middle, turn)) for turn in turns[1:]))
        best = sorted((pose for pose in looks if pose is not None), key=_merit, reverse=True)
        chosen: list[HeadPose] = []
        for pose in best:
            others = (turn_degrees(pose.fit.rotation @ other.fit.rotation.T) for other in chosen)
            if len(chosen) < MOST_POSES and all(degrees > SAME_TURN_DEGREES for degrees in others):
                chosen.append(pose)
        yield from sorted(map(look_upright, chosen), key=_merit, reverse=True)

    def _look(self, image: Tensor, grid: ObliqueGrid) -> HeadPose | None:
        """Label the head in an image on a grid, and fit the template to the structures that are found."""
        image = torch.as_tensor(self.brightness(image))
        device = next(self.network.parameters()).device
        probabilities = torch.as_tensor(self.network(image[None].to(device)))[0].softmax(0).cpu()[1:].double()
        centres = soft_centres(probabilities[None])[0]
        peaks = probabilities.flatten(1).amax(1)
        present = {name: i for i, name in enumerate(self.names) if peaks[i] >= LEAST_PEAK}
        used = [name for name in self.template if name in present]
        if len(used) < 3:
            return None
        centres_mm = {name: grid.to_volume_mm(centres[i]) for name, i in present.items()}
        fit, residuals = fit_similarity(
            torch.stack([self.template[name] for name in used]),
            torch.stack([centres_mm[name] for name in used]),
            CENTRE_TOLERANCE_MM,
        )
        residual_mm = float(residuals.median())
        enough = len(used) >= GOOD_SHARE * len(self.template)
        low, high = GOOD_SCALE
        good = enough and residual_mm <= GOOD_RESIDUAL_MM and low <= fit.scale <= high
        return HeadPose(centres_mm, fit, residual_mm, good)


def _merit(pose: HeadPose) -> tuple[bool, float]:
    """Order poses: good ones first, then those of more structures nearer to the template."""
    return (pose.good, len(pose.centres_mm) / (1 + pose.residual_mm / GOOD_RESIDUAL_MM))


def turn_doubts(pose: HeadPose) -> list[str]:
    """Say that a head lies otherwise than its header says; nothing where it does not."""
    degrees = turn_degrees(pose.fit.rotation)
    if degrees <= ODD_TURN_DEGREES:
        return []
    return [
        f"the head lies turned by {degrees:.0f} degrees from what the file's header says; labels follow the "
        "anatomy, but the header's directions may be wrong"
    ]


def right_angle_turns() -> list[Tensor]:
    """List the 24 rotations by right angles, the identity first, (3, 3) float64 each."""
    turns = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = torch.zeros(3, 3, dtype=torch.float64)
            for row, (column, sign) in enumerate(zip(order, signs)):
                turn[row, column] = sign
            if torch.linalg.det(turn) > 0:
                turns.append(turn)
    return turns


def turned_image(image: Tensor, turn: Tensor) -> Tensor:
    """Return an image on a cube's grid as on the same grid turned about its middle by right angles.

    Args:
        image: (C, n, n, n), on the grid without rotation.
        turn: one of :func:`right_angle_turns`, the rotation of the other grid.
    """
    rows = turn.abs().argmax(0)
    flipped = [1 + axis for axis in range(3) if turn[rows[axis], axis] < 0]
    return image.permute(0, *(1 + rows).tolist()).flip(flipped)
