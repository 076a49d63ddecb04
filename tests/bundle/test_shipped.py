"""Bundles that come with this package, by name."""

import shutil
from pathlib import Path

import pytest

from monai_vit3d import cli
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.bundle.shipped import find_bundle, shipped_bundles
from monai_vit3d.bundle.unpack import open_bundle
from monai_vit3d.data import BundleError
from tests.helpers import BUNDLES


def test_all_bundles_of_the_repository_have_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere
    assert shipped_bundles() == {path.name: path for path in sorted(BUNDLES.iterdir()) if path.is_dir()}
    with open_bundle("head_hippocampus") as folder:
        assert read_metadata(folder).channel_names[1] == "left anterior hippocampus"


def test_what_lies_under_the_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_bundle("head_hippocampus") == BUNDLES / "head_hippocampus"
    shutil.copytree(BUNDLES / "mae_pretraining", "head_hippocampus")
    assert find_bundle("head_hippocampus") == Path("head_hippocampus")
    assert find_bundle(tmp_path / "head_hippocampus") == tmp_path / "head_hippocampus"


def test_another_name_is_refused_and_those_that_are_there_are_named():
    names = "head_hippocampus, hippocampus_segmentation, "
    error = pytest.raises(BundleError, match=f"heads: no such file or folder; expected .* one of {names}")
    with error, open_bundle("heads"):
        pass


def test_the_command_lists_them(capsys):
    assert cli.main(["bundles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_bundles())
    assert " 32 MB " in next(line for line in lines if line.startswith("head_hippocampus"))
    assert "to be trained" in next(line for line in lines if line.startswith("ijepa_pretraining"))
