"""Name the directions that voxel axes run in."""

from __future__ import annotations

import numpy as np

from .volume import Array


def axis_letters(affine: Array) -> str:
    """Name the body direction nearest to each voxel axis: "RAS" if they run to the right, to the front and upward.

    The rotation nearest to the affine is taken (by its SVD), then its strongest entries, each world axis once; so
    does nibabel.

    Args:
        affine: (3, 3) or (4, 4), voxel index to world, RAS+ mm.
    """
    direction = np.asarray(affine, np.float64)[:3, :3]
    left, _, right = np.linalg.svd(direction / np.sqrt((direction**2).sum(axis=0)))
    cosines = left @ right
    letters = ["", "", ""]
    for axis in np.argsort(-np.abs(cosines).max(axis=0), kind="stable"):
        world = int(np.abs(cosines[:, axis]).argmax())
        letters[axis] = ("LPI" if cosines[world, axis] < 0 else "RAS")[world]
        cosines[world] = 0
    return "".join(letters)
