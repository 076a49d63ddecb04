"""A small label map of a head: ellipsoids with FreeSurfer's values, both sides apart."""

import numpy as np
import torch
from monai.data import MetaTensor

# value: centre and radii in mm, the head's middle at 0; later ones lie on top
PARTS = {
    507: ((0, 0, 0), (80, 95, 85)),
    515: ((0, 0, 5), (72, 87, 76)),
    24: ((0, 0, 8), (68, 83, 70)),
    2: ((-33, 0, 18), (30, 76, 52)),
    41: ((33, 0, 18), (30, 76, 52)),
    8: ((-24, -48, -38), (22, 24, 16)),
    47: ((24, -48, -38), (22, 24, 16)),
    16: ((0, -22, -38), (11, 11, 22)),
    4: ((-12, 2, 20), (6, 30, 9)),
    43: ((12, 2, 20), (6, 30, 9)),
    10: ((-11, -14, 6), (8, 14, 9)),
    49: ((11, -14, 6), (8, 14, 9)),
    12: ((-24, 6, 4), (7, 20, 11)),
    51: ((24, 6, 4), (7, 20, 11)),
    17: ((-27, -20, -14), (6, 18, 6)),
    53: ((27, -20, -14), (6, 18, 6)),
    18: ((-23, 2, -17), (7, 7, 7)),
    54: ((23, 2, -17), (7, 7, 7)),
}


def head_phantom(spacing_mm: float = 2.0, shape: tuple[int, int, int] = (90, 104, 96)) -> MetaTensor:
    """Draw the label map, (1, H, W, D) int16, RAS."""
    lines = [(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape]
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    labels = np.zeros(shape, np.int16)
    for value, (centre, radii) in PARTS.items():
        labels[(((grid - centre) / radii) ** 2).sum(-1) <= 1] = value
    return MetaTensor(torch.from_numpy(labels)[None], torch.diag(torch.tensor([*[spacing_mm] * 3, 1.0]).double()))
