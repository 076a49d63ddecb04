"""A bundle's reader options: the network sees what MONAI would show it, or the bundle is refused."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import NibabelReader
from monai.transforms import LoadImaged, Orientation

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.reader_options import MONAI_READERS, READER_OPTIONS, reader_options, without_itk
from monai_vit3d.cli import main
from monai_vit3d.data.errors import BundleError, ImageError
from monai_vit3d.data.nifti import read_nifti
from monai_vit3d.pipeline.prepare import prepare
from tests.pipeline.reference import (
    LOAD,
    ORIENT,
    SPACING,
    TYPED,
    monai_labels,
    our_labels,
    several,
    sharp_image,
    write_bundle,
)

# the file's axes run to the left, to the front and downwards, one of them first that is the second in RAS
TURNED = np.array([[0, -2.0, 0, 40], [1.5, 0, 0, -30], [0, 0, -3.0, 21], [0, 0, 0, 1]])


@pytest.fixture
def image(tmp_path):
    return sharp_image(tmp_path / "in" / "a.nii.gz", affine=TURNED)


def network_input(bundle, path):
    return prepare([read_nifti(path)], load_bundle(bundle, "cpu")).image


def on_axes_of(image, other):
    """Another image with its axes in the order and directions of this one."""
    start, end = (nib.orientations.io_orientation(one.affine) for one in (other, image))
    return other.as_reoriented(nib.orientations.ornt_transform(start, end))


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [SPACING]], ids=["as it is", "resampled"])
@pytest.mark.parametrize("first", [True, False], ids=["by LoadImaged", "by EnsureChannelFirstd"])
def test_closest_canonical_is_obeyed(tmp_path, image, first, more):
    load = {**LOAD, "ensure_channel_first": first, "as_closest_canonical": True}
    steps = [load, *([] if first else [{"_target_": "EnsureChannelFirstd", "keys": "image"}]), *more, TYPED]
    bundle = write_bundle(tmp_path / "bundle", steps)
    if not more:
        canonical = nib.as_closest_canonical(nib.load(image))
        np.testing.assert_array_equal(network_input(bundle, image)[0], canonical.get_fdata(dtype=np.float32))
    monai_labels(bundle, [{"image": image}], tmp_path / "monai")
    (ours,) = our_labels(bundle, image, tmp_path / "ours", ["a"])
    assert several(ours)
    # MONAI writes the canonical grid, ours is the file's: the same labels at each place in the world
    monai = on_axes_of(nib.load(image), nib.load(tmp_path / "monai" / "a_monai.nii.gz"))
    np.testing.assert_allclose(monai.affine, nib.load(image).affine, atol=1e-5)
    np.testing.assert_array_equal(ours, np.asarray(monai.dataobj))


@pytest.mark.parametrize("reader", ["ITKReader", "itkreader", "monai.data.ITKReader", ["ITKReader"], "@reader"])
def test_itk_is_not_needed(tmp_path, image, reader):
    steps = [{**LOAD, "reader": reader}, ORIENT, TYPED]
    bundle = write_bundle(tmp_path / "bundle", steps, reader="ITKReader")
    plain = write_bundle(tmp_path / "plain", [LOAD, ORIENT, TYPED])
    assert torch.equal(network_input(bundle, image).as_tensor(), network_input(plain, image).as_tensor())


def test_a_reader_with_options_of_its_own(tmp_path, image):
    reader = {"_target_": "ITKReader", "series_meta": True}
    assert network_input(write_bundle(tmp_path / "a", [{**LOAD, "reader": reader}, TYPED]), image).shape[0] == 1
    reader["reverse_indexing"] = True
    with pytest.raises(BundleError, match="reverse_indexing=True"):
        load_bundle(write_bundle(tmp_path / "b", [{**LOAD, "reader": reader}, TYPED]), "cpu")


def test_a_config_without_itk_keeps_the_rest():
    config = {
        "a": {"_target_": "LoadImaged", "reader": "NibabelReader"},
        "note": "ITKReader",
        "reader_name": "itkreader",
    }
    assert without_itk({**config}) == config


@pytest.mark.parametrize(
    ("options", "reader"),
    [
        ({"channel_dim": -1}, None),
        ({"channel_dim": 0}, "NibabelReader"),
        ({"reverse_indexing": True}, "ITKReader"),
        ({"series_name": "1.2.3"}, "ITKReader"),
        ({"affine_lps_to_ras": False}, "ITKReader"),
        ({"swap_ij": False}, "PydicomReader"),
        ({"fname_regex": "x.*"}, "PydicomReader"),
        ({"dtype": None}, None),
        ({"pixel_type": "x"}, "ITKReader"),
        ({"reverse_indexing": True}, None),  # goes to nibabel.load in MONAI, which does not know it
    ],
)
def test_what_is_not_served_is_refused_by_name(tmp_path, image, capsys, options, reader):
    load = {**LOAD, **options, **({"reader": reader} if reader else {})}
    bundle = write_bundle(tmp_path / "bundle", [load, TYPED])
    assert main(["predict", str(image), "-o", str(tmp_path / "out"), "--bundle", str(bundle), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert next(iter(options)) in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reader"),
    [
        ({"channel_dim": "no_channel"}, None),
        ({"squeeze_non_spatial_dims": True, "mmap": False}, "NibabelReader"),
        ({"series_name": "", "reverse_indexing": False, "affine_lps_to_ras": True}, "ITKReader"),
        ({"swap_ij": True, "prune_metadata": False}, "PydicomReader"),
        ({"dtype": "float64", "image_only": False, "simple_keys": True, "prune_meta_pattern": "x"}, None),
        ({}, "NumpyReader"),
    ],
)
def test_what_changes_nothing_is_taken(tmp_path, image, options, reader):
    load = {**LOAD, **options, **({"reader": reader} if reader else {})}
    found = network_input(write_bundle(tmp_path / "bundle", [load, TYPED]), image)
    np.testing.assert_array_equal(found[0], nib.load(image).get_fdata(dtype=np.float32))


def test_trailing_axes_are_squeezed_as_monai_does(tmp_path):
    path = tmp_path / "in" / "a.nii.gz"
    sharp_image(path)
    file = nib.load(path)
    nib.Nifti1Image(file.get_fdata(dtype=np.float32)[..., None], file.affine).to_filename(path)
    load = {**LOAD, "reader": "NibabelReader", "squeeze_non_spatial_dims": True}
    bundle = write_bundle(tmp_path / "bundle", [load, ORIENT, TYPED])
    options = {"squeeze_non_spatial_dims": True, "ensure_channel_first": True}
    monai = LoadImaged("image", reader="NibabelReader", **options)({"image": str(path)})["image"]
    assert torch.equal(network_input(bundle, path).as_tensor(), Orientation("RAS", labels=None)(monai).as_tensor())


def test_a_limit_of_the_bundles_reader_is_kept(tmp_path, image):
    reader = {"_target_": "monai_vit3d.data.NiftiReader", "max_voxels": 1000}
    bundle = load_bundle(write_bundle(tmp_path / "bundle", [{**LOAD, "reader": reader}, TYPED]), "cpu")
    with pytest.raises(ImageError, match=r"a\.nii\.gz: 9828 voxels.* 1000 \(max_voxels\)"):
        prepare([read_nifti(image)], bundle)


class MyReader(NibabelReader):
    """A reader of a bundle's own, which may read anything."""


def test_a_reader_of_the_bundles_own_is_refused():
    with pytest.raises(BundleError, match=r"reader=MyReader.*monai\.bundle run"):
        reader_options(LoadImaged("image", reader=MyReader()))


def test_the_table_knows_every_option_of_monais_readers():
    """A new version of MONAI with a new option has to be looked at."""
    import inspect

    known = set(READER_OPTIONS) | {"self", "kwargs", "dtype"}
    for reader in MONAI_READERS:
        assert set(inspect.signature(reader.__init__).parameters) <= known, reader


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [True, False])
def test_lazy_resampling_is_obeyed(tmp_path, image, lazy):
    crop = {"_target_": "CenterSpatialCropd", "keys": "image", "roi_size": [14, 12, 9]}
    steps = {"_target_": "Compose", "transforms": [LOAD, ORIENT, SPACING, crop, TYPED], "lazy": lazy}
    bundle = write_bundle(tmp_path / "bundle", steps)
    (monai,) = monai_labels(bundle, [{"image": image}], tmp_path / "monai")
    (ours,) = our_labels(bundle, image, tmp_path / "ours", ["a"])
    assert several(ours)
    np.testing.assert_array_equal(ours, monai)


def test_options_of_compose_are_not_dropped(tmp_path):
    overrides = {"Spacingd": {"mode": "nearest"}}
    steps = {"_target_": "Compose", "transforms": [LOAD, SPACING], "lazy": True, "overrides": overrides}
    with pytest.raises(BundleError, match="overrides"):
        load_bundle(write_bundle(tmp_path / "a", steps), "cpu")
    inner = {"_target_": "Compose", "transforms": [SPACING], "lazy": True}
    steps = {"_target_": "Compose", "transforms": [LOAD, inner]}
    with pytest.raises(BundleError, match="lazy"):
        load_bundle(write_bundle(tmp_path / "b", steps), "cpu")
