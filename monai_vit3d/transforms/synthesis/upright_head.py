"""Lay the label map of a head upright, as a localized head is given to a network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_vit3d.data.errors import UsageError
from monai_vit3d.transforms.oblique_grid import ObliqueGrid, onto_grid
from monai_vit3d.transforms.similarity import fit_similarity

from .head_labels import HEAD_STRUCTURES
from .head_template import FIT_TOLERANCE_MM, structure_centres


class UprightHeadd(MapTransform):
    """Bring label maps of heads into a template's pose, place and size, by nearest neighbours.

    Args:
        keys: of the label maps, (1, H, W, D) MetaTensors in RAS orientation.
        template_mm: name and centre of each structure in an upright head; those without a centre (None) do not count.
        spatial_size: of the result.
        spacing_mm: of the result's voxels, in the template's millimetres: a head is enlarged or reduced to its size.
        centre_mm: the place in the template that is the middle of the result.
        structures: label values of each name.
        allow_missing_keys: whether items without the label map pass.

    Raises:
        UsageError: a map with fewer than three of the structures.
    """

    def __init__(
        self,
        keys: KeysCollection,
        template_mm: Mapping[str, Sequence[float] | None],
        spatial_size: Sequence[int],
        spacing_mm: float = 1.0,
        centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
        structures: Mapping[str, Sequence[int]] = HEAD_STRUCTURES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        placed = {name: list(centre) for name, centre in template_mm.items() if centre}
        self.structures = {name: structures[name] for name in placed}
        self.template = torch.tensor(list(placed.values()), dtype=torch.float64)
        self.centre_mm = torch.tensor(list(centre_mm), dtype=torch.float64)
        self.spatial_size, self.spacing_mm = (spatial_size[0], spatial_size[1], spatial_size[2]), spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its label maps upright."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._upright(item[key])
        return item

    def _upright(self, labels: MetaTensor) -> MetaTensor:
        centres = structure_centres(labels, self.structures)
        found = centres.isfinite().all(1)
        if found.sum() < 3:
            raise UsageError(
                f"a label map has {int(found.sum())} of {', '.join(self.structures)}; expected three or more. Give a "
                "whole head's map with FreeSurfer's label values."
            )
        fit, _ = fit_similarity(self.template[found], centres[found], FIT_TOLERANCE_MM)
        grid = ObliqueGrid(fit(self.centre_mm), fit.rotation, self.spatial_size, self.spacing_mm * fit.scale)
        values = onto_grid(labels.as_tensor().float(), labels.pixdim.tolist(), grid, mode="nearest")
        affine = torch.eye(4, dtype=torch.float64) * self.spacing_mm
        affine[3, 3] = 1
        return MetaTensor(values.to(labels.dtype), affine)
