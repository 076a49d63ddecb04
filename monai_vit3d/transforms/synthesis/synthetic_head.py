"""Draw an image of random contrast, pose and quality from the label map of a head."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.transforms.utils import create_rotate, create_scale, create_shear
from torch import Tensor
from torch.nn.functional import avg_pool3d, conv3d, interpolate, pad

from monai_vit3d.data.errors import UsageError

from .head_labels import (
    BRAIN_TISSUES,
    FIRST_OUTSIDE,
    FLUID,
    HEAD_STRUCTURES,
    LARGEST_VALUE,
    mirror_lookup,
    structure_lookup,
)

DEFORMATION_KNOTS = 6  # along each axis
FINE = 2  # the image is drawn on a grid this many times finer, so that its voxels mix tissues as a scanner's do


class RandSyntheticHead(Randomizable, Transform):
    """Draw an image and the classes of its voxels from the label map of a head, in the manner of SynthSeg.

    Each call draws a pose (rotation, size, shear, place, mirror image), a smooth deformation, the brightness of each
    tissue, what lies outside of the brain, a bias field, the thickness of slices, blur, noise, and the part of the
    head that is in the field of view (Billot et al., Medical Image Analysis 2023, section 3).

    Args:
        structures: name and label values of each class; class 0 is the rest.
        spatial_size: of the result.
        spacing_mm: of the result's voxels.
        rotate_degrees: the largest rotation about each axis.
        shift_mm: the largest shift of the head's centre from that of the grid, along each axis.
        t1_share: how often contrasts are T1's, with some variation; else those of T1 inverted, or any.
        stripped_share: how often what lies outside of the brain is missing.
        cut_share: how often the field of view cuts a part of the head off.
        centred: whether heads lie in the middle of their label maps already, as by :class:`UprightHeadd`; else the
            middle of what is labelled is looked for.
        inverted_share: how often contrasts are those of T1 inverted; None: a third of those that are not T1's.

    Raises:
        UsageError: a label map that is not 3D with one channel, or has values outside of 0 to 531.

    Example:
        >>> draw = RandSyntheticHead(spatial_size=(32, 32, 32), spacing_mm=8.0).set_random_state(seed=0)
        >>> image, classes = draw(MetaTensor(labels, affine))  # doctest: +SKIP
    """

    def __init__(
        self,
        structures: Mapping[str, Sequence[int]] = HEAD_STRUCTURES,
        spatial_size: Sequence[int] = (64, 64, 64),
        spacing_mm: float = 4.0,
        rotate_degrees: float = 45.0,
        shift_mm: float = 25.0,
        t1_share: float = 0.5,
        stripped_share: float = 0.25,
        cut_share: float = 0.5,
        centred: bool = False,
        inverted_share: float | None = None,
    ) -> None:
        self.spatial_size, self.spacing_mm = tuple(spatial_size), float(spacing_mm)
        self.rotate, self.shift_mm = math.radians(rotate_degrees), shift_mm
        self.t1_share, self.stripped_share, self.cut_share = t1_share, stripped_share, cut_share
        self.inverted_share = (1 - t1_share) / 3 if inverted_share is None else inverted_share
        self.centred = centred
        self.classes = torch.from_numpy(structure_lookup(structures))
        self.mirrored = torch.from_numpy(mirror_lookup())

    def __call__(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one image.

        Args:
            labels: (1, H, W, D) label values in RAS orientation; a MetaTensor's affine gives the spacing, else 1 mm.

        Returns:
            the image, (1, *spatial_size) float32 from 0 to about 1, and the class of each voxel, uint8 of that shape.
        """
        if labels.ndim != 4 or len(labels) != 1:
            raise UsageError(f"labels has shape {tuple(labels.shape)}; expected (1, H, W, D).")
        values = labels.as_tensor()[0] if isinstance(labels, MetaTensor) else labels[0]
        low, high = (int(value) for value in values.aminmax())
        if not 0 <= low <= high <= LARGEST_VALUE:
            raise UsageError(f"labels has values from {low} to {high}; expected FreeSurfer's, 0 to {LARGEST_VALUE}.")
        affine = np.asarray(getattr(labels, "affine", np.eye(4)), float)
        noise = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        points = self._points(values, np.sqrt((affine[:3, :3] ** 2).sum(0)))
        # an image of RAS voxels that is mirrored has left on the right
        mirror = self.R.rand() < 0.5
        fine = _values_at(values, points, mirror)
        coarse = _values_at(values, avg_pool3d(points, FINE), mirror)
        shown = self.mirrored.long() if mirror else torch.arange(len(self.mirrored))
        if self.R.rand() < self.stripped_share:
            shown = _strip(shown, FLUID if self.R.rand() < 0.5 else FIRST_OUTSIDE)
        image = _looked_up(self._brightness()[shown], fine)
        image = self._scan(image, noise)
        classes = _looked_up(self.classes[shown], coarse)
        return self._field_of_view(image, classes)

    def _points(self, values: Tensor, spacing: np.ndarray) -> Tensor:
        """Draw the pose: where the voxels of the fine grid lie in the label map, (3, H, W, D) in its voxels."""
        size = [FINE * n for n in self.spatial_size]
        angles, shears = self.R.uniform(-self.rotate, self.rotate, 3), self.R.uniform(-0.05, 0.05, 6)
        scale = math.exp(self.R.normal(0, 0.07)) * np.exp(self.R.normal(0, 0.03, 3))
        turn = create_rotate(3, list(angles)) @ create_shear(3, list(shears)) @ create_scale(3, list(scale))
        if self.centred:
            centre = (np.array(values.shape) - 1) / 2
        else:
            centre = np.array([_middle(values.amax(others)) for others in ((1, 2), (0, 2), (0, 1))])
        shift = self.R.uniform(-self.shift_mm, self.shift_mm, 3)
        matrix = np.diag(1 / spacing) @ turn[:3, :3] * (self.spacing_mm / FINE)
        matrix = torch.from_numpy(matrix).float()
        offset = torch.from_numpy(centre + turn[:3, :3] @ shift / spacing).float()
        # interpolation between the knots is exact for the pose, and smooth for the deformation
        lines = [torch.linspace(-(n - 1) / 2, (n - 1) / 2, DEFORMATION_KNOTS) for n in size]
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
        knots = torch.from_numpy(self.R.normal(0, self.R.uniform(0, 4), tuple(grid.shape))).float()
        knots = knots / torch.from_numpy(spacing).float()[:, None, None, None]
        return _smooth((matrix @ grid.flatten(1) + offset[:, None]).view_as(grid) + knots, size)

    def _brightness(self) -> Tensor:
        """Draw the mean of each label value: T1's with variation, T1's inverted, or any."""
        means = self.R.uniform(0, 1, LARGEST_VALUE + 1)  # outside of the brain: any
        kind = self.R.rand()
        for values, t1 in BRAIN_TISSUES:
            mean = t1 + self.R.normal(0, 0.05)
            if kind > self.t1_share + self.inverted_share:
                mean = self.R.uniform(0, 1)
            elif kind > self.t1_share:
                mean = 1.15 - mean
            means[list(values)] = mean + self.R.normal(0, 0.02, len(values))
        means[0] = 0.0 if self.R.rand() < 0.8 else self.R.uniform(0, 0.3)
        return torch.from_numpy(means).float()

    def _scan(self, image: Tensor, noise: torch.Generator) -> Tensor:
        """Draw texture, reduce to the result's grid, and draw slice thickness, blur, bias field, noise and gamma."""
        image = image + self.R.uniform(0, 0.12) * torch.randn(image.shape, generator=noise) * (image > 0)
        image = avg_pool3d(image, FINE)
        size = image.shape[1:]
        if self.R.rand() < 0.3:  # thick slices
            axis, thick = self.R.randint(3), self.R.randint(2, 4)
            window = [thick if a == axis else 1 for a in range(3)]
            image = interpolate(avg_pool3d(image[None], window), size, mode="trilinear")[0]
        if self.R.rand() < 0.5:
            image = _blur(image, self.R.uniform(0.3, 0.8))
        bias = torch.from_numpy(self.R.normal(0, self.R.uniform(0, 0.4), (1, 4, 4, 4))).float()
        image = image * _smooth(bias, size).exp()
        image = image + self.R.uniform(0, 0.05) * torch.randn(image.shape, generator=noise)
        return image.clamp(min=0) ** math.exp(self.R.normal(0, 0.2))

    def _field_of_view(self, image: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Empty what lies outside of a field of view that is smaller than the grid, as often as ``cut_share``."""
        if self.R.rand() < self.cut_share:
            inside = torch.zeros_like(classes, dtype=torch.bool)
            low = [self.R.randint(0, 1 + n // 5) for n in self.spatial_size]
            high = [n - self.R.randint(0, 1 + n // 5) for n in self.spatial_size]
            box = tuple(slice(a, b) for a, b in zip(low, high))
            inside[0][box] = True
            image, classes = image * inside, classes * inside
        return image, classes


class RandSyntheticHeadd(Randomizable, MapTransform):
    """Do as :class:`RandSyntheticHead` with an item: an image is added, the label map becomes classes.

    Args:
        keys: of the label map.
        image_key: of the image that is drawn.
        allow_missing_keys: whether items without the label map pass.
        kwargs: of :class:`RandSyntheticHead`.
    """

    def __init__(
        self, keys: KeysCollection, image_key: str = "image", allow_missing_keys: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, self.draw = image_key, RandSyntheticHead(**kwargs)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandSyntheticHeadd:
        """Seed the drawing."""
        super().set_random_state(seed, state)
        self.draw.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the image and the classes that were drawn."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[self.image_key], item[key] = self.draw(item[key])
        return item


def _values_at(values: Tensor, points: Tensor, mirror: bool) -> Tensor:
    """Sample the label map at points, (3, H, W, D) in its voxels, by nearest neighbours; 0 outside."""
    padded = pad(values[None], (1, 1, 1, 1, 1, 1))[0]
    place = torch.zeros(points.shape[1:], dtype=torch.int32)
    for axis, (line, n) in enumerate(zip(points, values.shape)):
        index = line.clamp(-1, n).round_().int().add_(1)
        if mirror and axis == 0:
            index = n + 1 - index
        place.mul_(n + 2).add_(index)
    return _looked_up(padded.flatten(), place)[None]


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """Return the values of a table at an index of any shape; eight times faster than ``table[index]``."""
    return table.index_select(0, index.flatten().int()).view_as(index)


def _strip(values: Tensor, first: int) -> Tensor:
    outside = (values >= FIRST_OUTSIDE) | (values == first)
    return torch.where(outside, 0, values)


def _middle(line: Tensor) -> float:
    """Find the middle between the first and the last value above 0."""
    above = line.nonzero()
    return float(above[0] + above[-1]) / 2 if len(above) else (len(line) - 1) / 2


def _smooth(knots: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate a coarse field, (C, ...), to a size, its corners at the corners, axis by axis."""
    for axis, n in enumerate(size, 1):
        at_knots = torch.eye(knots.shape[axis])[None]
        weights = interpolate(at_knots, n, mode="linear", align_corners=True)[0]  # (knots, n)
        knots = torch.tensordot(knots, weights, dims=([axis], [0])).movedim(-1, axis)
    return knots.contiguous()


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian, its sigma in voxels, axis by axis."""
    radius = max(1, round(2.5 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    line = line / line.sum()
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(line)
        around = [0, 0, 0, 0, 0, 0]
        around[2 * (2 - axis)] = around[2 * (2 - axis) + 1] = radius
        image = conv3d(pad(image[None], around, mode="replicate"), line.view(shape))[0]
    return image
