"""A bundle's postprocessing against MONAI's own run, voxel by voxel and name by name."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import run as run_bundle
from monai.transforms.post import dictionary as post_dictionary

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.data.nifti import read_nifti_grid
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.pipeline.memory import needed_bytes
from tests.pipeline import chains
from tests.pipeline.chains import CHAINS, GRIDS, Chain, step, write_bundle, write_image

QUICK = ("inverted nearest, small in mm3", "BraTS", "labels, linear", "scores", "one-hot, largest", "a copy is saved")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return {grid: write_image(folder / f"g{i}.nii.gz", grid) for i, grid in enumerate(GRIDS)}


def by_monai(bundle, images, out):
    """What ``python -m monai.bundle run`` saves of each image, (C, H, W, D) float32."""
    config = str(bundle / "configs" / "inference.json")
    paths = {"bundle_root": str(bundle), "dataset_dir": str(images), "output_dir": str(out)}
    run_bundle(config_file=config, logging_file=False, **paths)
    return {path.name: volume(out / path.name.replace(".nii.gz", "_seg.nii.gz")) for path in images.iterdir()}


def volume(path):
    """(C, H, W, D), channels being last in the file."""
    values = np.asarray(nib.load(path).dataobj)
    return np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CHAINS]
)
def test_labels_and_names_are_those_of_monai_bundle_run(images, tmp_path, name):
    chain, folder = CHAINS[name], tmp_path / "in"
    folder.mkdir()
    for grid in chain.grids:
        shutil.copy(images[grid], folder)
    bundle = write_bundle(tmp_path / "bundle", chain)
    other = bundle if chain.reference is None else write_bundle(tmp_path / "other", chain, chain.reference)
    expected = by_monai(other, folder, tmp_path / "monai")
    out = tmp_path / "out"
    predict_folder([folder], out, bundle, device="cpu")
    seen = set()
    for record in json.loads((out / "run.json").read_text())["files"]:
        assert record["status"] == "done", record["error"]
        ours, theirs = volume(record["output"]), expected[f"{record['name']}.nii.gz"]
        if chain.like == "highest":
            theirs = theirs.argmax(0)[None]
        if chain.like == "half":
            theirs = theirs >= 0.5
        assert ours.dtype.kind in "iu"
        np.testing.assert_array_equal(ours, theirs, err_msg=record["name"])
        np.testing.assert_array_equal(nib.load(record["output"]).affine, nib.load(record["input"]).affine)
        assert sum("; written " in warning for warning in record["warnings"]) == chain.warns
        names = {row["label"]: row["name"] for row in record["stats"]}
        assert names == chain.names
        sizes = {row["label"]: row["voxels"] for row in record["stats"]}
        masks = len(theirs) > 1
        assert sizes == {v: int((theirs[v - 1] != 0 if masks else theirs == v).sum()) for v in chain.names}
        seen |= {v for v, size in sizes.items() if size}
    assert seen == set(chain.names)


# of MONAI's postprocessing: those that make no labels
NO_LABELS = {
    "DistanceTransformEDTd", "Ensembled", "GenerateHeatmapd", "ProbNMSd", "SaveClassificationd", "SobelGradientsd",
}  # fmt: skip


def test_the_table_is_wide():
    """Forty chains on each of the four grids; each step of MONAI's postprocessing; both inversions."""
    assert len([chain for chain in CHAINS.values() if set(chain.grids) == set(GRIDS)]) >= 40
    used = {one["_target_"] for chain in CHAINS.values() for one in chain.steps}
    post = {name for name, one in vars(post_dictionary).items() if isinstance(one, type) and name.endswith("d")}
    own = {name for name in post if vars(post_dictionary)[name].__module__ == post_dictionary.__name__}
    assert own - used == NO_LABELS
    assert {one["nearest_interp"] for c in CHAINS.values() for one in c.steps if one["_target_"] == "Invertd"} == {0, 1}


@pytest.mark.parametrize("size", [[40, 40, 40], [13, 30, 7]])
@pytest.mark.parametrize("name", ["Resized", "Zoomd"])
def test_sizes_are_changed_back_without_a_shift(tmp_path, name, size):
    """Where MONAI takes the voxel whose lower edge is next: a voxel of the file has the label at its own centre."""
    spatial = {"spatial_size": size} if name == "Resized" else {"zoom": size[0] / 20, "keep_size": False}
    resized = step(name, "image", mode="nearest-exact", **spatial)
    pre = [step("LoadImaged", "image", ensure_channel_first=True), resized]
    bundle = write_bundle(tmp_path / "bundle", Chain([chains.ARGMAX, chains.NEAREST]), pre=pre)
    path = write_image(tmp_path / "in" / "a.nii.gz", "aligned")
    predict_folder([path], tmp_path / "out", bundle, device="cpu")
    ours = volume(tmp_path / "out" / "a_seg.nii.gz")[0]
    values = np.asarray(nib.load(path).dataobj)
    for axis, before in enumerate(values.shape):
        after = size[axis] if name == "Resized" else int(before * size[0] / 20)
        there = ((np.arange(after) + 0.5) * before / after).astype(int)  # the voxel of the file, by its centre
        back = ((np.arange(before) + 0.5) * after / before).astype(int)
        values = np.take(values, there[back], axis)
    np.testing.assert_array_equal(ours, np.where(values > 70, 2, np.where(values > 30, 1, 0)))


@pytest.mark.slow
def test_labels_that_steps_have_turned_lie_where_monai_writes_them(tmp_path):
    """``Orientationd`` behind ``Invertd``: MONAI's file has other axes, ours the image's; both show the same place."""
    chain = Chain([chains.ARGMAX, chains.NEAREST, step("Orientationd", axcodes="PSL", labels=None)])
    bundle = write_bundle(tmp_path / "bundle", chain)
    for i, grid in enumerate(GRIDS):
        write_image(tmp_path / "in" / f"g{i}.nii.gz", grid)
    by_monai(bundle, tmp_path / "in", tmp_path / "monai")
    predict_folder([tmp_path / "in"], tmp_path / "out", bundle, device="cpu")
    for path in sorted((tmp_path / "out").glob("*_seg.nii.gz")):
        ours, theirs = (nib.as_closest_canonical(nib.load(file)) for file in (path, tmp_path / "monai" / path.name))
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        assert len(np.unique(ours.dataobj)) == 3


@pytest.mark.parametrize(
    ("steps", "by_planes", "interpolated", "whole"),
    [
        ([chains.ARGMAX, chains.LARGEST, chains.NEAREST], 1, 0, 2),  # as our own bundles
        ([chains.SOFTMAX, chains.LINEAR, chains.ARGMAX], 1, 1, 0),  # as the zoo's
        ([chains.SOFTMAX, chains.LINEAR, chains.ARGMAX, chains.HOLES], 1, 1, 1),
        ([chains.SOFTMAX, chains.NEAREST, chains.ARGMAX], 2, 0, 1),
        ([chains.NEAREST, chains.SIGMOID, chains.HALF], 0, 0, 3),  # zeros around a crop would be above a half
        ([chains.SOFTMAX, chains.LINEAR], 1, 1, 0),
        ([chains.function("x"), chains.LINEAR, chains.ARGMAX], 0, 0, 3),
    ],
)
def test_the_whole_of_the_scores_is_held_where_it_has_to_be_alone(tmp_path, steps, by_planes, interpolated, whole):
    bundle = load_bundle(write_bundle(tmp_path / "bundle", Chain(steps)), "cpu")
    post = bundle.postprocessing
    assert (len(post.voxelwise), post.inversion is not None, len(post.rest)) == (by_planes, interpolated, whole)
    plain = load_bundle(write_bundle(tmp_path / "plain", Chain([chains.ARGMAX, chains.NEAREST])), "cpu")
    grid = read_nifti_grid(write_image(tmp_path / "a.nii.gz", "oblique"))
    if not post.makes_labels and not interpolated:
        assert needed_bytes(grid, 1, bundle) > needed_bytes(grid, 1, plain)
