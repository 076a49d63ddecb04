"""A bundle's postprocessing against MONAI's own run, voxel by voxel and name by name."""

import json

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import run as run_bundle

from monai_vit3d.pipeline.folder import predict_folder
from tests.pipeline.chains import CHAINS, GRIDS, write_bundle, write_image

QUICK = ("inverted nearest, small in mm3", "BraTS", "labels, linear", "scores", "one-hot, largest", "a copy is saved")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, grid in enumerate(GRIDS):
        write_image(folder / f"g{i}.nii.gz", grid)
    return folder


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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CHAINS]
)
def test_labels_and_names_are_those_of_monai_bundle_run(images, tmp_path, name):
    chain = CHAINS[name]
    bundle = write_bundle(tmp_path / "bundle", chain)
    other = bundle if chain.reference is None else write_bundle(tmp_path / "other", chain, chain.reference)
    expected = by_monai(other, images, tmp_path / "monai")
    out = tmp_path / "out"
    predict_folder([images], out, bundle, device="cpu")
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
        assert [("written" in warning) for warning in record["warnings"]] == [True] * chain.warns
        names = {row["label"]: row["name"] for row in record["stats"]}
        assert names == chain.names
        sizes = {row["label"]: row["voxels"] for row in record["stats"]}
        masks = len(theirs) > 1
        assert sizes == {v: int((theirs[v - 1] != 0 if masks else theirs == v).sum()) for v in chain.names}
        seen |= {v for v, size in sizes.items() if size}
    assert seen == set(chain.names)


def test_the_table_is_wide():
    assert len(CHAINS) >= 40
