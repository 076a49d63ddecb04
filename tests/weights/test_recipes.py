"""Recipes: one phantom, however it is stored, gives one tensor; steps are compared with numpy and scipy."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from monai_vit3d.data import ImageError, UsageError
from monai_vit3d.data.published_models import published_model
from monai_vit3d.weights import input_transform, load_recipe, recipe_transform

EXTENT_MM = np.array([60.0, 72.0, 48.0])
FILLED = {
    "primus_m_openmind_mae": {"orientation": "RAS"},
    "colipri": {},
    "spectre_large": {},
    "flexict_3d": {"mode": "bilinear"},
    "brainiac": {"orientation": "LAS"},
    "segvol": {},
    "neuro_jepa": {},
    "m3d_clip": {"orientation": "SAR", "mode": "trilinear"},
    "dinov2_base_volume": {"orientation": "RAS", "lower": 0.5, "upper": 99.5},
}


def phantom(spacing_mm):
    """A smooth head in whole numbers, in RAS+ order, whose outer edges are the same at any spacing."""
    shape = np.round(EXTENT_MM / spacing_mm).astype(int)
    axes = [(np.arange(n) + 0.5) * spacing_mm / extent - 0.5 for n, extent in zip(shape, EXTENT_MM)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = np.exp(-8 * (x**2 + y**2 + z**2))
    values = np.round(-900 + 1700 * inside + 120 * x + 60 * y * z).astype(np.int16)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (0.5 * spacing_mm - EXTENT_MM / 2) + [10.0, -20.0, 5.0]
    return values, affine


def turned(values, affine, axes, flips):
    """The image with its axes in another order and some of them reversed, at its place."""
    wanted = np.column_stack([np.argsort(axes), np.where(flips, -1, 1)])
    change = ornt_transform(io_orientation(affine), wanted)
    return apply_orientation(values, change), affine @ inv_ornt_aff(change, values.shape)


@pytest.mark.slow
@pytest.mark.parametrize("spacing_mm", [6.0, 8.0])
def test_a_phantom_stored_in_any_way_gives_one_tensor(spacing_mm, tmp_path):
    prepare = recipe_transform({"orientation": "RAS", "steps": [{"z_score": {"nonzero": False}}]})
    values, affine = phantom(spacing_mm)
    first = prepare(nib.Nifti1Image(values, affine))
    ways = list(itertools.product(itertools.permutations(range(3)), itertools.product([0, 1], repeat=3)))
    assert len(ways) == 48
    for axes, flips in ways:
        stored, place = turned(values, affine, axes, flips)
        for kind in (np.int16, np.float32):
            path = tmp_path / "image.nii.gz"
            nib.Nifti1Image(stored.astype(kind), place).to_filename(path)
            tensor = prepare(str(path))
            assert torch.equal(tensor.as_tensor(), first.as_tensor()), (axes, flips)
            torch.testing.assert_close(tensor.affine, first.affine, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILLED)
def test_each_recipe_gives_one_tensor_of_a_turned_file(name):
    # voxels of 1 mm where scans are registered beforehand: a recipe that pads them first would make thousands of 6 mm
    spacing_mm = 1.0 if published_model(name).beforehand else 6.0
    prepare, (values, affine) = input_transform(name, **FILLED[name]), phantom(spacing_mm)
    first = prepare(nib.Nifti1Image(values, affine))
    assert first.shape[0] == published_model(name).input_size[0]
    assert torch.isfinite(first).all()
    stored, place = turned(values, affine, (2, 0, 1), (1, 0, 1))
    assert torch.equal(prepare(nib.Nifti1Image(stored.astype(np.float32), place)).as_tensor(), first.as_tensor())


def test_two_spacings_give_one_tensor_within_interpolation():
    one, other = (input_transform("colipri")(nib.Nifti1Image(*phantom(spacing))) for spacing in (2.0, 3.0))
    middle = (slice(None), *(slice(n // 2 - 10, n // 2 + 10) for n in one.shape[1:]))
    assert one.shape == other.shape == (1, 192, 192, 192)
    torch.testing.assert_close(one.affine, other.affine, rtol=0, atol=1e-6)
    # linear interpolation is off by h^2 / 8 times the curvature of 0.012 per mm^2 at most, along three axes
    assert (one[middle] - other[middle]).abs().max() < 3 * 9 / 8 * 0.012
    assert one[middle].max() - one[middle].min() > 0.5


def test_colipris_steps_are_those_of_numpy():
    values, affine = phantom(2.0)
    expected = np.clip(values.astype(np.float64), -1000, 1000) / 1000
    before = [(192 - n) // 2 for n in values.shape]
    pads = [(start, 192 - n - start) for start, n in zip(before, values.shape)]
    expected = np.pad(expected, pads, constant_values=expected.min())
    tensor = input_transform("colipri")(nib.Nifti1Image(values, affine))
    np.testing.assert_allclose(tensor[0].numpy(), expected, rtol=0, atol=1e-6)
    world = tensor.affine.numpy() @ [*before, 1]  # of the first voxel
    np.testing.assert_allclose(world, affine @ [0, 0, 0, 1], atol=1e-4)


def test_an_odd_voxel_is_cut_or_padded_first_where_torchio_has_it_so():
    """TorchIO 1.2.1's CropOrPad gives the same places."""
    values = np.arange(7 * 4 * 9, dtype=np.float32).reshape(7, 4, 9) + 1
    recipe = {"orientation": "RAS", "steps": [{"crop_or_pad": {"size": [4, 7, 9], "value": 0, "odd": "first"}}]}
    tensor = recipe_transform(recipe)(nib.Nifti1Image(values, np.eye(4)))
    np.testing.assert_array_equal(tensor[0].numpy(), np.pad(values[2:6], [(0, 0), (2, 1), (0, 0)]))
    np.testing.assert_allclose(tensor.affine.numpy()[:3, 3], [2, -2, 0])


def test_segvols_foreground_and_brainiacs_z_score_are_those_of_numpy():
    values, affine = phantom(4.0)
    steps = [{"foreground_z_score": {"lower": 0.05, "upper": 99.95}}]
    tensor = recipe_transform({"orientation": "SAR", "steps": steps})(nib.Nifti1Image(values, affine))
    wide = values.astype(np.float64)
    foreground = wide[wide > wide.mean()]
    low, high = np.percentile(foreground, (0.05, 99.95))
    expected = (np.clip(wide, low, high) - foreground.mean()) / foreground.std()
    np.testing.assert_allclose(tensor[0].numpy(), expected.transpose(2, 1, 0), rtol=0, atol=1e-5)

    cut = np.where(values > 0, values, 0)
    recipe = {"orientation": "RAS", "steps": [{"z_score": {"nonzero": True}}]}
    tensor = recipe_transform(recipe)(nib.Nifti1Image(cut, affine))[0].numpy()
    inside = cut[cut > 0].astype(np.float64)
    np.testing.assert_allclose(tensor[cut > 0], (inside - inside.mean()) / inside.std(), rtol=0, atol=1e-4)
    assert (tensor[cut == 0] == 0).all()


def test_spectres_crops_are_whole_windows():
    image = nib.Nifti1Image(np.zeros((130, 300, 40), np.int16), np.eye(4))
    assert input_transform("spectre_large")(image).shape == (1, 128, 256, 64)


def test_what_is_not_stated_is_asked_for(tmp_path):
    with pytest.raises(UsageError, match=r"brainiac: not stated by its authors: orientation\. Pass"):
        input_transform("brainiac")
    with pytest.raises(UsageError, match="above of crop_foreground, margin of crop_foreground, mode of resize"):
        input_transform("3dino_vit_large")
    with pytest.raises(UsageError, match="colipri: spacing: nothing to fill in"):
        input_transform("colipri", spacing=2)
    with pytest.raises(UsageError, match="vjepa2_vit_large: no preparation of volumes is stated"):
        input_transform("vjepa2_vit_large")
    with pytest.raises(UsageError, match="is no step; expected one of resample"):
        recipe_transform({"orientation": "RAS", "steps": [{"resmaple": {}}]})
    (tmp_path / "recipe.yaml").write_text("orientation: RAS\nsteps:\n  - min_max: {}\n")
    assert load_recipe(tmp_path / "recipe.yaml")["steps"] == [{"min_max": {}}]
    assert load_recipe("colipri") == published_model("colipri").recipe
    with pytest.raises(UsageError, match="no published model, and no YAML file"):
        load_recipe("nowhere.yaml")
    two = np.zeros((2, 8, 8, 8), np.float32)
    with pytest.raises(ImageError, match="2 channels; expected 1"):
        recipe_transform({"orientation": "RAS"})([nib.Nifti1Image(channel, np.eye(4)) for channel in two])
