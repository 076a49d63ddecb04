"""Label the structures of a head in one upright box that a coarse network finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.transforms import ScaleIntensityRangePercentiles
from torch import Tensor, nn

from monai_vit3d.transforms.oblique_grid import ObliqueGrid, from_grid, onto_grid

from .head_inferer import LEAST_PROBABILITY, HeadInferer
from .head_localizer import FINER, HeadLocalizer, turn_doubts

NO_HEAD = "no head was found for certain in the image, and nothing is labelled"


class UprightInferer(HeadInferer):
    """Lay a head upright and in a template's size by a :class:`HeadLocalizer`, label it, and take the labels back.

    Outside of the box everything is background. A head that is not found for certain is not labelled, and
    :attr:`doubts` says so. :attr:`certain` is the figure that ``least_probability`` is compared with, of the last
    head; None where the localizer found no head.

    Args:
        inferer: runs the network on the box, such as an ``AutocastInferer``.
        localizer: finds the head.
        num_classes: of the network, background included.
        box: voxels of the box along each axis.
        box_spacing_mm: of the box's voxels, in the template's millimetres.
        spacing_mm: of the input's voxels.
        centre_mm: the place in the template that is the middle of the box.
        least_probability: of the structures, each one's the mean over its voxels, the median; below it the box shows no
            head. Noise can look like a head to a localizer.
    """

    def __init__(
        self,
        inferer: Callable[..., Any],
        localizer: HeadLocalizer,
        num_classes: int,
        box: Sequence[int],
        box_spacing_mm: float,
        spacing_mm: float,
        centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
        least_probability: float = 0.0,
    ) -> None:
        super().__init__(inferer, localizer)
        self.num_classes = num_classes
        self.box, self.box_spacing_mm, self.spacing_mm = (box[0], box[1], box[2]), box_spacing_mm, spacing_mm
        self.centre_mm = torch.tensor(list(centre_mm), dtype=torch.float64)
        self.least_probability = least_probability
        self.certain: float | None = None
        self._brightness = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)

    def _label(self, volume: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Label one head, (1, H, W, D)."""
        volume_cpu, spacing, self.certain = volume.float().cpu(), [self.spacing_mm] * 3, None
        self.pose = pose = self.localizer(volume_cpu, spacing)
        logits = torch.full((self.num_classes, *volume.shape[1:]), LEAST_PROBABILITY)
        logits[0] = 1
        if pose is None or not pose.good:
            self._doubt(f"{NO_HEAD}: its structures do not lie as a head's")
            return logits.log_()
        grid = ObliqueGrid(pose.fit(self.centre_mm), pose.fit.rotation, self.box, self.box_spacing_mm * pose.fit.scale)
        image = torch.as_tensor(self._brightness(onto_grid(volume_cpu, spacing, grid, FINER)))
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        answer = torch.as_tensor(self.inferer(image[None].to(device), network, *args, **kwargs))[0]
        probabilities = answer.float().softmax(0).cpu()
        self.certain = _median_probability(probabilities)
        if self.certain < self.least_probability:
            least = f"expected {self.least_probability} or more"
            self._doubt(f"{NO_HEAD}: the median of its structures' probabilities is {self.certain:.2f}; {least}")
            return logits.log_()
        for text in turn_doubts(pose):
            self._doubt(text)
        box, values = from_grid(probabilities[1:], grid, volume.shape[1:], spacing)
        for number, probability in enumerate(values, 1):
            logits[number][box] = probability
        logits[0][box] -= values.sum(0)
        return logits.clamp_(LEAST_PROBABILITY, 1).log_()


def _median_probability(probabilities: Tensor) -> float:
    """Average the probability of each structure over the voxels where it is the largest; the median of structures.

    Args:
        probabilities: (K, H, W, D) of the background and the structures; one that is nowhere has 0.
    """
    highest, labels = probabilities.max(0)
    count = len(probabilities)
    sums = torch.bincount(labels.flatten(), highest.flatten().double(), minlength=count)
    voxels = torch.bincount(labels.flatten(), minlength=count)
    return float((sums / voxels.clamp(min=1))[1:].median())
