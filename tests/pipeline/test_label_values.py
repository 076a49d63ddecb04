"""Labels in place of a scan, by their values; and scans of few values, which are run."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from monai_vit3d.data import Grid, ImageError, Volume
from monai_vit3d.pipeline.label_values import MAX_LABEL_VALUES, check_label_values, few_whole_values


def volume(voxels):
    return Volume(Path("a.nii"), voxels.astype(np.float32), Grid(voxels.shape, np.eye(4)), ("odd",))


def of(*values):
    """These values in a volume, nearly all of it the first."""
    voxels = np.full((70, 70, 70), values[0], np.float32)
    voxels.flat[-len(values) :] = values  # the last corner: no sample of a few voxels sees them
    return volume(voxels)


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2, 4), (1, 2), tuple(range(14)), (0, 3)])
def test_labels_are_refused(values):
    with pytest.raises(ImageError, match=rf"^a.nii: {len(values)} different values, all whole .*: labels, not a scan"):
        check_label_values(of(*values))


@pytest.mark.parametrize(
    "values", [(0, 255), (0, 50, 90), (0, 17, 53), (-1024, 0), (-1, 0, 1), tuple(range(0, 320, 10))]
)
def test_scans_of_few_values_are_warned_of(values):
    given_one = of(*values)
    checked = check_label_values(given_one)
    assert checked.voxels is given_one.voxels
    first, warning = checked.warnings
    assert first == "odd"
    assert warning.startswith(f"{len(values)} different values, all whole (")


@pytest.mark.parametrize("values", [(0,), (7,), (0, 0.5), (0, 1, 2.001), tuple(range(MAX_LABEL_VALUES + 1))])
def test_scans_are_left_alone(values):
    given_one = of(*values)
    assert check_label_values(given_one) is given_one


def parcels(count, shape=(60, 50, 40)):
    """Each voxel has the number of the nearest of random points; 0 outside of a ball."""
    rng = np.random.default_rng(count)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    _, nearest = cKDTree(rng.uniform(0, shape, (count, 3))).query(index)
    inside = np.linalg.norm(index - np.array(shape) / 2, axis=-1) < 19
    return np.where(inside, nearest + 1, 0)


@pytest.mark.parametrize("voxels", [parcels(117), 7 * parcels(80), np.repeat(parcels(110), 3, axis=2)])
def test_parcellations_of_many_values_are_warned_of(voxels):
    checked = check_label_values(volume(voxels))
    assert checked.warnings[1].startswith("neighbours have the same whole number: a label file? include_labels=True")


def test_smooth_scans_of_8_and_16_bits_are_left_alone():
    rng, shape = np.random.default_rng(0), (60, 50, 40)
    smooth = gaussian_filter(rng.normal(size=shape), 3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    head = np.where(parcels(3) > 0, smooth, 0)  # in air of one value
    for values in (255 * smooth, 255 * head, 4000 * head, 255 * head + rng.normal(0, 3, shape).clip(0), 100 * smooth):
        given_one = volume(np.rint(values))
        assert check_label_values(given_one) is given_one
    given_one = volume(parcels(90) + 0.5)
    assert check_label_values(given_one) is given_one


@given(
    arrays(np.float32, array_shapes(min_dims=3, max_dims=3), elements=st.sampled_from([0, 1, 2, 2.5, 99, *range(40)]))
)
def test_few_whole_values_as_numpy_counts_them(voxels):
    values = np.unique(voxels)
    expected = 2 <= len(values) <= MAX_LABEL_VALUES and (values % 1 == 0).all()
    found = few_whole_values(voxels)
    assert (found is not None) == expected
    if expected:
        np.testing.assert_array_equal(found, values)
