"""Pictures of patch tokens, as values on their grid: principal components, and likeness to one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Array, Grid

_TAILS = (1, 99)  # percentiles that become 0 and 1


def principal_components(rows: Array, count: int) -> tuple[Array, Array]:
    """Return the first principal components of rows, and the part of the variance that each has.

    The sign of each is chosen so that its largest weight is positive: the same rows give the same numbers.

    Args:
        rows: (N, F).
        count: of components.

    Returns:
        (N, count) and (count,) float64; zeros where the rows have fewer.
    """
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count] * np.sign(np.take_along_axis(axes[:count], np.abs(axes[:count]).argmax(1)[:, None], 1))
    scores, shares = np.zeros((len(rows), count)), np.zeros(count)
    scores[:, : len(axes)] = centred @ axes.T
    shares[: len(axes)] = lengths[: len(axes)] ** 2 / max((lengths**2).sum(), 1e-300)
    return scores, shares


def pca_rgb(tokens: Array) -> Array:
    """Return the first three principal components of a volume's tokens, from 0 to 1: red, green and blue.

    Tokens of zeros, which patches of background have, are left out, and black.

    Args:
        tokens: (E, h, w, d).

    Returns:
        (3, h, w, d) float32.
    """
    rows = tokens.reshape(len(tokens), -1).T
    colours = np.zeros((len(rows), 3), np.float32)
    has_token = rows.any(1)
    if has_token.any():
        scores, _ = principal_components(rows[has_token], 3)
        low, high = np.percentile(scores, _TAILS, axis=0)
        colours[has_token] = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colours.T.reshape(3, *tokens.shape[1:])


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
