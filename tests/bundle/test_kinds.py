"""The zoo's shapes of bundles: what kind each is, whether it runs, under --safe, and with monai.bundle run's labels."""

import os
import sys

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.bundle.config import AS_SHIPPED, read_parser
from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.bundle.kinds import kind_of
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.cli import main
from monai_vit3d.data.errors import BundleError
from tests.pipeline import zoo, zoo_minis
from tests.pipeline.reference import monai_labels, our_labels, several

MINIS = {name: make() for name, make in zoo_minis.MINIS.items()}
SERVED = [name for name, mini in MINIS.items() if mini.served]
UNSERVED = [name for name, mini in MINIS.items() if not mini.served]
# MONAI interpolates its labels, and writes fractions of them
INTERPOLATED = "prostate_mri_anatomy"


@pytest.fixture
def bundle(tmp_path, request):
    return zoo_minis.write(tmp_path, request.param)[0]


@pytest.fixture(autouse=True)
def path_as_it_was():
    before = list(sys.path)
    yield
    sys.path[:] = before


def write_case(folder, mini):
    """A case's files, and a list of it if it has several."""
    paths = []
    folder.mkdir()
    for i in range(mini.channels):
        paths.append(folder / f"case_{i}.nii.gz")
        zoo.smooth_image(i, (20, 22, 14)).to_filename(paths[-1])
    if mini.channels == 1:
        return paths, paths[0]
    columns = [f"image_{key}" for key in mini.keys] if len(mini.keys) > 1 else [f"image{i}" for i in range(4)]
    table = folder / "list.csv"
    table.write_text("\n".join([",".join([*columns, "name"]), ",".join([*(path.name for path in paths), "case_0"])]))
    return paths, table


@pytest.mark.parametrize("name", MINIS)
def test_the_kind_is_told_by_the_config(tmp_path, name):
    root, mini = zoo_minis.write(tmp_path, name)
    kind = kind_of(read_parser(root, AS_SHIPPED, "cpu").get(), read_metadata(root))
    assert (kind.name, kind.served) == (mini.kind, mini.served)


@pytest.mark.parametrize("bundle", UNSERVED, indirect=True)
def test_other_kinds_are_refused_in_one_line(bundle, tmp_path, capsys):
    zoo.smooth_image().to_filename(tmp_path / "a.nii.gz")
    words = ["predict", tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--bundle", bundle, "--safe", "--device", "cpu"]
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    kind = MINIS[bundle.name].kind
    assert kind in line
    assert "not served by vit3d predict" in line
    assert not (tmp_path / "out").exists()
    assert main(["info", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert kind in said
    assert "labels on each file's own grid" not in said


@pytest.mark.slow
@pytest.mark.parametrize("bundle", SERVED, indirect=True)
def test_labels_are_those_of_monai(bundle, tmp_path, monkeypatch):
    mini = MINIS[bundle.name]
    paths, given = write_case(tmp_path / "in", mini)
    image = [str(path) for path in paths]
    case = dict(zip(mini.keys, image)) if len(mini.keys) > 1 else {"image": image if mini.channels > 1 else image[0]}
    (ours,) = our_labels(bundle, given, tmp_path / "ours", ["case_0"])
    assert several(ours)
    without_itk(monkeypatch, bundle)
    monkeypatch.syspath_prepend(str(bundle))
    (monai,) = monai_labels(bundle, [case], tmp_path / "monai")
    masks = np.moveaxis(ours, -1, 0) if ours.ndim > 3 and ours.shape[:3] != monai.shape[:3] else ours
    if bundle.name == INTERPOLATED:
        # a whole number there is the label of all voxels around, and the nearest of them is ours
        inside = monai == np.rint(monai)
        assert not inside.all()
        assert (ours[inside] == monai[inside]).mean() > 0.99
        return
    np.testing.assert_array_equal(masks.squeeze(), monai.squeeze())


def without_itk(monkeypatch, bundle):
    """MONAI itself needs the package for that reader; of a NIfTI file NibabelReader gives the same."""
    path = bundle / "configs" / "inference.json"
    path.write_text(path.read_text().replace("ITKReader", "NibabelReader"))
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", os.devnull)


@pytest.mark.parametrize("bundle", SERVED, indirect=True)
def test_which_run_under_safe(bundle):
    if MINIS[bundle.name].safe:
        assert load_bundle(bundle, "cpu", safe=True).preprocessing.load_keys == MINIS[bundle.name].keys
        assert describe_bundle(bundle)["--safe"] == "runs"
        return
    with pytest.raises(BundleError, match="not allowed in a bundle with safe=True"):
        load_bundle(bundle, "cpu", safe=True)


def test_nothing_of_a_kind_that_is_not_served_runs(tmp_path):
    root, mini = zoo_minis.write(tmp_path, "mednist_gan")
    trace = tmp_path / "trace"
    config = {**mini.config, "network_def": {**mini.config["network_def"], "act": f"$open({str(trace)!r}, 'w')"}}
    zoo.write_bundle(root, config, mini.metadata, {})
    with pytest.raises(BundleError, match="image generation"):
        load_bundle(root, "cpu")
    assert not trace.exists()


@pytest.mark.slow
def test_labels_of_slices_are_saved_on_the_files_grid(tmp_path):
    root, mini = zoo_minis.write(tmp_path, "ventricular_short_axis_3label")
    paths, given = write_case(tmp_path / "in", mini)
    our_labels(root, given, tmp_path / "out", ["case_0"], "--safe")
    found = nib.load(tmp_path / "out" / "case_0_seg.nii.gz")
    np.testing.assert_array_equal(found.affine, nib.load(paths[0]).affine)
