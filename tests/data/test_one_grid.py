"""Channels on the grid of the first, against SimpleITK."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from monai_vit3d.data import ImageError, read_volume
from monai_vit3d.data.one_grid import onto_first_grid
from monai_vit3d.data.volume import Grid, Volume


def oblique(spacing=(1.2, 1.0, 2.5), offset=(-50, 20, 7), angles=(0.1, -0.2, 0.7)):
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(*angles) @ np.diag(spacing)
    affine[:3, 3] = offset
    return affine


def save(path, shape, affine, seed):
    noise = np.random.default_rng(seed).normal(40, 20, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, affine), path)
    return path


def about_centre(shape, angles):
    """A turned grid whose centre is that of the first's 14 x 12 x 9 voxels."""
    affine = oblique(angles=angles)
    affine[:3, 3] = (oblique() @ [6.5, 5.5, 4, 1])[:3] - affine[:3, :3] @ [(n - 1) / 2 for n in shape]
    return affine


GRIDS = {
    "shifted": ((14, 12, 9), oblique(offset=(-49.4, 20, 7))),
    "finer": ((30, 26, 22), oblique(spacing=(0.6, 0.5, 1.25))),
    "turned and smaller": ((9, 11, 6), about_centre((9, 11, 6), (0.3, 0.1, 0.4))),
    "axes exchanged": ((9, 14, 12), oblique()[:, [2, 0, 1, 3]]),
}


@pytest.mark.parametrize("name", GRIDS)
def test_as_simpleitk(tmp_path, name):
    shape, affine = GRIDS[name]
    paths = [save(tmp_path / "a.nii.gz", (14, 12, 9), oblique(), 0), save(tmp_path / "b.nii.gz", shape, affine, 1)]
    first, other = onto_first_grid([read_volume(path) for path in paths])
    moving, reference = (SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32) for path in paths[::-1])
    lowest = float(SimpleITK.GetArrayFromImage(moving).min())
    expected = SimpleITK.Resample(
        moving, reference, SimpleITK.Transform(), SimpleITK.sitkLinear, lowest, SimpleITK.sitkFloat32
    )
    # a voxel at half a voxel from the border is inside or outside by a rounding
    differing = np.abs(other.voxels - SimpleITK.GetArrayFromImage(expected).T) > 0.01
    assert differing.mean() < 0.002
    assert np.unique(other.voxels).size > 100
    assert first.warnings == ()
    np.testing.assert_array_equal(other.grid.affine_mm, first.grid.affine_mm)
    assert "b.nii.gz: resampled onto the grid of a.nii.gz" in other.warnings[-1]


def volume(name, affine, shape=(4, 5, 6)):
    return Volume(Path(name), np.arange(np.prod(shape), dtype=np.float32).reshape(shape), Grid(shape, affine))


def test_channels_on_one_grid_stay_as_they_are():
    near = oblique()
    near[0, 3] += 0.05
    volumes = [volume("a", oblique()), volume("b", near)]
    assert onto_first_grid(volumes) == volumes


def test_nothing_in_common_is_refused():
    affine = np.eye(4)
    affine[2, 3] = 40
    with pytest.raises(ImageError, match="b: no voxel of a lies in it; channels of a case"):
        onto_first_grid([volume("a", np.eye(4)), volume("b", affine)])


def test_what_lies_outside_gets_the_lowest_value_and_is_reported():
    affine = np.eye(4)
    affine[0, 3] = 2
    _, other = onto_first_grid([volume("a", np.eye(4)), volume("b", affine)])
    np.testing.assert_array_equal(other.voxels[:2], 0)
    np.testing.assert_array_equal(other.voxels[2:], volume("b", affine).voxels[:2])
    assert "50% of it lies outside" in other.warnings[-1]
