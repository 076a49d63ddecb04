"""The wheel: all of the package and of its bundles, and the command works from it without a clone."""

import os
import shutil
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pytest
import yaml

import monai_vit3d
from tests.helpers import BUNDLES, ONE_THREAD, ROOT, phantom

SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "monai_vit3d", "bundles")
HELD_ONCE = {
    "monai_vit3d/bundles/head_hippocampus/models/hippocampus.pt",
    "monai_vit3d/bundles/head_structures/models/localizer.pt",
}
pytestmark = pytest.mark.slow


def pip(*arguments, cwd):
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a build leaves folders beside them
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "eval", "runs")
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", ".", "./source", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def vit3d(wheel, tmp_path_factory):
    """Run the wheel's command in a folder that is no clone; returns what it prints."""
    site = tmp_path_factory.mktemp("site-packages")
    pip("install", "--target", str(site), str(wheel), cwd=site)
    home = tmp_path_factory.mktemp("home")

    def run(*arguments, cwd):
        paths = {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(home)}  # before the clone that is installed as editable
        command = [sys.executable, "-m", "monai_vit3d", *arguments]
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **ONE_THREAD, **paths}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def tracked(*folders):
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line for line in listed.stdout.splitlines() if (ROOT / line).is_file()}


def test_its_files_are_those_of_the_repository_and_equal_weights_lie_in_it_once(wheel):
    expected = {path.replace("bundles/", "monai_vit3d/bundles/", 1) if path.startswith("bundles/") else path
                for path in tracked("monai_vit3d", "bundles")}  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        members = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert expected - members == HELD_ONCE
    assert members - expected == set()
    assert wheel.stat().st_size < 50e6


def test_its_version_is_the_packages(wheel):
    assert wheel.name == f"monai_vit3d-{monai_vit3d.__version__}-py3-none-any.whl"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == monai_vit3d.__version__


def test_it_lists_and_describes_its_bundles(vit3d, tmp_path):
    lines = vit3d("bundles", cwd=tmp_path).splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == sorted(path.name for path in BUNDLES.iterdir() if path.is_dir())
    described = vit3d("info", "head_hippocampus", cwd=tmp_path)
    assert "--safe        runs" in described
    assert "localizer.pt" in described


def test_it_predicts_by_a_bundles_name(vit3d, tmp_path):
    phantom(0)[0].to_filename(tmp_path / "crop.nii.gz")
    vit3d("predict", "crop.nii.gz", "-o", "out", "--bundle", "hippocampus_segmentation", cwd=tmp_path)
    labels = nib.load(tmp_path / "out" / "crop_seg.nii.gz")
    assert {1, 2} <= set(np.unique(np.asarray(labels.dataobj)))
