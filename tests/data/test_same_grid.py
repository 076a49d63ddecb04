"""One rule for one grid: corners up to 0.1 voxel apart, whichever way the affines differ."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data import Grid, ImageError, Volume
from monai_vit3d.data.same_grid import check_same_grid

SHAPE = (24, 256, 20)


def volume(name, affine, shape=SHAPE):
    return Volume(Path(name), np.zeros(shape, np.float32), Grid(shape, affine))


def affine(spacing=(2.0, 2.0, 2.0), origin=(-20.0, -30.0, 10.0)):
    out = np.diag([*spacing, 1.0])
    out[:3, 3] = origin
    return out


def compared(second, first=None):
    check_same_grid(volume("t1.nii", affine() if first is None else first), volume("flair.nii", second))


def test_microns_are_no_other_grid():
    compared(affine(origin=(-20.002, -30, 10)))
    compared(affine(origin=(-20.19, -30, 10)))
    compared(affine().astype(np.float32).astype(float) * (1 + 1e-7))


def test_how_far_apart_is_in_the_message():
    expected = r"^flair.nii: up to 0.105 voxels \(0.21 mm\) away from t1.nii; channels need one grid, 0.1 voxels apart"
    with pytest.raises(ImageError, match=expected):
        compared(affine(origin=(-20.21, -30, 10)))


def test_a_small_turn_counts_at_the_far_corner():
    # 0.001 of a direction, which a comparison of the affine's numbers lets pass, over 256 voxels: 0.25 mm
    turned = affine((1.0, 1.0, 1.0))
    turned[0, 1] = 1e-3
    with pytest.raises(ImageError, match=r"up to 0.255 voxels \(0.255 mm\) away"):
        compared(turned, affine((1.0, 1.0, 1.0)))
    turned[0, 1] = 1e-4
    compared(turned, affine((1.0, 1.0, 1.0)))


def test_shapes():
    with pytest.raises(ImageError, match=r"^b: shape \(24, 256, 21\), but a has \(24, 256, 20\)"):
        check_same_grid(volume("a", affine()), volume("b", affine(), (24, 256, 21)))


def test_an_affine_that_is_not_finite_is_another_grid():
    odd = affine()
    odd[0, 0] = np.nan
    with pytest.raises(ImageError, match="up to nan voxels"):
        compared(odd)


@given(st.integers(0, 2), st.floats(-3, 3), st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3))
def test_a_shift_along_an_axis_counts_in_voxels_of_that_axis(axis, voxels, spacing):
    shifted = affine(spacing)
    shifted[axis, 3] += voxels * spacing[axis]
    if abs(abs(voxels) - 0.1) < 1e-6:
        return
    if abs(voxels) < 0.1:
        compared(shifted, affine(spacing))
    else:
        with pytest.raises(ImageError, match=rf"up to {abs(voxels):.3g} voxels"):
            compared(shifted, affine(spacing))
