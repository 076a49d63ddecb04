"""Average the places of structures over label maps of heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from monai_vit3d.transforms.similarity import fit_similarity

from .head_labels import HEAD_STRUCTURES

ROUNDS = 5  # of fitting the heads to their mean
FIT_TOLERANCE_MM = 8.0
LEFT, RIGHT = "left ", "right "


def mean_centres(
    label_maps: Iterable[Tensor], structures: Mapping[str, Sequence[int]] = HEAD_STRUCTURES
) -> dict[str, list[float]]:
    """Average the centres of structures over heads, each brought onto the mean by rotation, scale and shift.

    The mean head is made symmetric; its size and pose are the mean of the heads'.

    Args:
        label_maps: MetaTensors (1, H, W, D) of label values, in RAS orientation.
        structures: name and label values; the sides of one are called ``"left …"`` and ``"right …"``.

    Returns:
        name and centre of each structure in mm, x to the right, y to the front, z up; their mean is at 0.
    """
    heads = torch.stack([structure_centres(labels, structures) for labels in label_maps])
    heads = heads - heads.mean(1, keepdim=True)
    mean = heads.mean(0)
    for _ in range(ROUNDS):
        fits = [fit_similarity(head, mean, FIT_TOLERANCE_MM)[0] for head in heads]
        scale = np.exp(np.mean([np.log(fit.scale) for fit in fits]))  # the mean keeps the heads' size
        mean = torch.stack([fit(head) for fit, head in zip(fits, heads)]).mean(0) / scale
        mean = _symmetric(mean - mean.mean(0), list(structures))
    return {name: [round(float(x), 2) for x in centre] for name, centre in zip(structures, mean)}


def structure_centres(labels: Tensor, structures: Mapping[str, Sequence[int]] = HEAD_STRUCTURES) -> Tensor:
    """Compute the centre of each structure of a label map.

    Args:
        labels: MetaTensor (1, H, W, D) of label values, in RAS orientation.
        structures: name and label values.

    Returns:
        (structures, 3) float64, in mm from the centre of the map's first voxel; NaN where one is not in the map.
    """
    spacing = torch.as_tensor(np.sqrt((np.asarray(labels.affine)[:3, :3] ** 2).sum(0)))  # type: ignore[attr-defined]
    values = np.asarray(labels)[0]
    places = [np.argwhere(np.isin(values, tuple(group))) for group in structures.values()]
    centres = [found.mean(0) if len(found) else np.full(3, np.nan) for found in places]
    return torch.as_tensor(np.array(centres)) * spacing


def _symmetric(centres: Tensor, names: Sequence[str]) -> Tensor:
    """Average the centres with those of the mirror image."""
    partner = [names.index(_other_side(name)) for name in names]
    mirrored = centres[partner] * torch.tensor([-1.0, 1.0, 1.0], dtype=centres.dtype)
    return (centres + mirrored) / 2


def _other_side(name: str) -> str:
    if name.startswith(LEFT):
        return RIGHT + name.removeprefix(LEFT)
    return LEFT + name.removeprefix(RIGHT) if name.startswith(RIGHT) else name
