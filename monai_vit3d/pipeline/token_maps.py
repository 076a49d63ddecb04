"""Pictures of patch tokens, as values on their grid: principal components, and likeness to one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Array, Grid

_TAILS = (1, 99)  # percentiles that become 0 and 1


def pca_rgb(tokens: Array) -> Array:
    """Return the first three principal components of a volume's tokens, from 0 to 1: red, green and blue.

    The sign of each is chosen so that its largest weight is positive; the same tokens give the same colours.

    Args:
        tokens: (E, h, w, d).

    Returns:
        (3, h, w, d) float32.
    """
    rows = tokens.reshape(len(tokens), -1).T.astype(np.float64)
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    axes = axes[:3] * np.sign(np.take_along_axis(axes[:3], np.abs(axes[:3]).argmax(1)[:, None], 1))
    scores = (rows - rows.mean(0)) @ axes.T
    low, high = np.percentile(scores, _TAILS, axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    padded = np.zeros((3, len(rows)))
    padded[: colours.shape[1]] = colours.T
    return padded.reshape(3, *tokens.shape[1:]).astype(np.float32)


def similarity_map(tokens: Array, grid: Grid, point_mm: Sequence[float]) -> Array:
    """Return the cosine of each token with that at a point.

    Args:
        tokens: (E, h, w, d).
        grid: of the tokens.
        point_mm: of the scan's world, RAS+.

    Returns:
        (h, w, d) float32.

    Raises:
        ImageError: the point lies outside.
    """
    place = np.linalg.solve(grid.affine_mm, [*point_mm, 1.0])[:3]
    index = np.floor(place + 0.5).astype(int)
    if (index < 0).any() or (index >= grid.shape).any():
        raise ImageError(
            f"similar={','.join(map(str, point_mm))}: outside of what the network saw. Give another point."
        )
    rows = tokens.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
    at = (slice(None), *index)
    return np.tensordot(rows[at], rows, 1).astype(np.float32)
