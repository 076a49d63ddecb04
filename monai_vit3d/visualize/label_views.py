"""Draw the surfaces of labels as they are seen from outside: shaded by direction and depth, with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_vit3d.data.volume import Array

from .colours import PALETTE, Colour
from .planes import ACROSS, Plane, panel_places

_FROM_LAST = ("axial", "sagittal")  # planes seen from the end of their axis: the feet, the patient's left
_LIGHT = np.array([-0.4, -0.5, 0.77])  # from the upper left, toward the picture
_AMBIENT, _FARTHEST = 0.3, 0.6  # brightness without light, and of what lies deepest
_VOXELS = 256  # along an axis, of twice as many every second one is looked at
_FINER = 2  # painted so much larger and averaged, so that borders are smooth
_SMOOTHING = 1.2  # voxels, standard deviation: takes the steps off the slopes, not off the outline


def paint_label_view(
    labels: Array, plane: Plane, size: tuple[int, int], spacing_mm: Array, colours: Sequence[Colour] = PALETTE
) -> Array:
    """Paint the labels as seen across a plane, (height, width, 3) uint8 on black, at the panel's size.

    The viewer looks at the feet, the face or the patient's left, so that directions in the picture are the plane's.

    Args:
        labels: (L, P, I) integers, 0 is background.
        plane: across which one looks.
        size: width and height of the panel.
        spacing_mm: of the axes.
        colours: of labels 1, 2, ..., again from the start when they end.
    """
    step = [max(1, n // _VOXELS) for n in labels.shape]
    labels = np.ascontiguousarray(labels[tuple(slice(None, None, n) for n in step)])
    spacing_mm = spacing_mm * step
    axis, finer = ACROSS[plane], (size[0] * _FINER, size[1] * _FINER)
    toward = np.moveaxis(labels, axis, 0).swapaxes(1, 2)
    toward = toward[::-1] if plane in _FROM_LAST else toward
    rows, columns = (places.astype(int) for places in panel_places(finer, toward.shape[1:]))
    seen, first = (part[np.ix_(rows, columns)] for part in _first_labels(toward))
    if not seen.any():
        return np.zeros((size[1], size[0], 3), np.uint8)
    pixels_a_mm = finer[0] / (toward.shape[2] * np.delete(spacing_mm, axis)[0])
    depth = first * spacing_mm[axis] * pixels_a_mm
    inside = (seen != 0).astype(np.float64)
    deviations = _SMOOTHING * pixels_a_mm * np.delete(spacing_mm, axis)[::-1]  # of rows, of columns
    smooth = _smooth(depth * inside, deviations) / np.maximum(_smooth(inside, deviations), 1e-6)
    down, across = np.gradient(smooth)
    normal = np.stack([across, down, np.ones_like(smooth)], axis=-1)
    lit = np.clip(normal @ _LIGHT / np.linalg.norm(normal, axis=-1), 0, 1)
    near, far = depth[seen != 0].min(), depth[seen != 0].max()
    deep = np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    shade = inside * (_AMBIENT + (1 - _AMBIENT) * lit) * (1 - (1 - _FARTHEST) * deep)
    colour = np.array(colours)[(seen.astype(np.int64) - 1) % len(colours)]
    painted = (colour * shade[..., None]).reshape(size[1], _FINER, size[0], _FINER, 3).mean(axis=(1, 3))
    return np.rint(painted).astype(np.uint8)


def _smooth(values: Array, deviations: Array) -> Array:
    """Smooth by two box filters, nearly as a Gaussian of these deviations, in a time that does not depend on them."""
    from scipy.ndimage import uniform_filter

    widths = [2 * round((np.sqrt(6 * deviation**2 + 1) - 1) / 2) + 1 for deviation in deviations]
    for _ in range(2):
        values = uniform_filter(values, widths)
    return values


def _first_labels(toward: Array) -> tuple[Array, Array]:
    """Return the first label on each ray along the first axis, and after how many voxels it lies."""
    seen, first = np.zeros(toward.shape[1:], toward.dtype), np.zeros(toward.shape[1:])
    for i, plane in enumerate(toward):  # numpy's argmax would copy the volume
        new = (plane != 0) & (seen == 0)
        if new.any():
            seen[new], first[new] = plane[new], i
    return seen, first
