"""Oblique grids: scipy's interpolation at the same points, and the way there and back."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from monai_vit3d.transforms.oblique_grid import ObliqueGrid, from_grid, onto_grid
from tests.helpers import randn

SPACING = (1.0, 1.5, 0.8)


def _grid(angles=(20, -35, 50), size=(7, 9, 8), spacing_mm=1.3, centre=(14.0, 20.0, 9.0)):
    rotation = torch.from_numpy(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
    return ObliqueGrid(torch.tensor(centre, dtype=torch.float64), rotation, size, spacing_mm)


def test_values_are_scipys():
    volume, grid = randn(1, 26, 28, 24), _grid()
    voxels = (grid.points_mm() / torch.tensor(SPACING, dtype=torch.float64)).numpy()
    expected = map_coordinates(volume[0].numpy(), np.moveaxis(voxels, -1, 0), order=1, mode="grid-constant")
    np.testing.assert_allclose(onto_grid(volume, SPACING, grid)[0].numpy(), expected, atol=1e-9)


def test_a_finer_grid_is_averaged():
    volume, grid = randn(1, 26, 28, 24), _grid()
    fine = ObliqueGrid(grid.centre_mm, grid.rotation, tuple(2 * n for n in grid.size), grid.spacing_mm / 2)
    expected = torch.nn.functional.avg_pool3d(onto_grid(volume, SPACING, fine), 2)
    torch.testing.assert_close(onto_grid(volume, SPACING, grid, finer=2), expected)


def test_voxels_and_millimetres_are_inverse():
    grid, voxels = _grid(), randn(50, 3)
    torch.testing.assert_close(grid.to_voxels(grid.to_volume_mm(voxels)), voxels)
    torch.testing.assert_close(grid.points_mm()[2, 3, 4], grid.to_volume_mm(torch.tensor([2.0, 3.0, 4.0])))


def test_an_upright_grid_on_the_voxels_takes_them_as_they_are():
    volume = randn(1, 20, 22, 24)
    grid = _grid(angles=(0, 0, 0), size=(4, 5, 6), spacing_mm=1.0, centre=(7.5, 9.0, 10.5))
    torch.testing.assert_close(onto_grid(volume, (1, 1, 1), grid), volume[:, 6:10, 7:12, 8:14], rtol=0, atol=1e-12)
    box, values = from_grid(volume[:, 6:10, 7:12, 8:14], grid, (20, 22, 24), (1, 1, 1))
    assert box == (slice(6, 10), slice(7, 12), slice(8, 14))
    torch.testing.assert_close(values, volume[:, 6:10, 7:12, 8:14], rtol=0, atol=1e-12)


def test_a_smooth_volume_comes_back():
    lines = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in (30, 32, 28)]
    x, y, z = torch.meshgrid(*lines, indexing="ij")
    volume = (x + 2 * y - z)[None]  # linear: interpolated without error
    grid = _grid(size=(12, 12, 12), spacing_mm=1.0)
    box, values = from_grid(onto_grid(volume, SPACING, grid), grid, volume.shape[1:], SPACING)
    inside = (values != 0) & (from_grid(torch.ones(1, *grid.size).double(), grid, volume.shape[1:], SPACING)[1] > 0.999)
    assert inside.sum() > 300
    torch.testing.assert_close(values[inside], volume[(slice(None), *box)][inside])


@pytest.mark.parametrize("centre", [(-40.0, 20.0, 9.0), (14.0, 200.0, 9.0)], ids=["before", "behind"])
def test_a_grid_outside_of_the_volume(centre):
    grid = _grid(centre=centre)
    assert not onto_grid(randn(1, 26, 28, 24), SPACING, grid).any()
    _, values = from_grid(torch.ones(2, *grid.size), grid, (26, 28, 24), SPACING)
    assert not values.any()
