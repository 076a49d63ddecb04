"""Bundles that come with this package, by name."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from monai_vit3d import cli
from monai_vit3d.bundle import shipped
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
    names = "head_hippocampus, head_structures, hippocampus_segmentation, "
    error = pytest.raises(BundleError, match=f"heads: no such file or folder; expected .* one of {names}")
    with error, open_bundle("heads"):
        pass


def test_the_command_lists_them(capsys):
    assert cli.main(["bundles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert list(rows) == list(shipped_bundles())
    assert all(" Apache License 2.0 " in row for row in rows.values())
    assert " 32 MB " in rows["head_hippocampus"]
    assert "to be trained" in rows["ijepa_pretraining"]
    scores = json.loads((BUNDLES / "hippocampus_segmentation" / "configs" / "metadata.json").read_text())[
        "eval_metrics"
    ]
    below = lines[lines.index(rows["hippocampus_segmentation"]) + 1].split(", ")
    assert {name.strip(): float(value) for name, _, value in (text.rpartition(" ") for text in below)} == scores


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The bundles as the wheel has them: equal weights once."""
    folder = tmp_path / "site-packages" / "monai_vit3d" / "bundles"
    shutil.copytree(BUNDLES, folder, ignore=shutil.ignore_patterns("hippocampus.pt"))
    monkeypatch.setattr(shipped, "_FOLDERS", (folder, BUNDLES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_weights_that_the_wheel_holds_once_are_found_for_both_bundles(installed, tmp_path):
    assert find_bundle("hippocampus_segmentation") == installed / "hippocampus_segmentation"
    assert not (tmp_path / "cache").exists()
    head = find_bundle("head_hippocampus")
    assert head.is_relative_to(tmp_path / "cache" / "monai_vit3d")
    sums = json.loads((head / "configs" / "metadata.json").read_text())["weights_sha256"]
    assert sums == {name: hashlib.sha256((head / name).read_bytes()).hexdigest() for name in sums}
    files = [path.relative_to(BUNDLES) for path in (BUNDLES / "head_hippocampus").rglob("*") if path.is_file()]
    assert all((head.parent / path).read_bytes() == (BUNDLES / path).read_bytes() for path in files)


def test_the_completed_bundle_is_made_once_for_each_content(installed, tmp_path):
    head = find_bundle("head_hippocampus")
    made = head.stat().st_ino
    assert (find_bundle("head_hippocampus"), head.stat().st_ino) == (head, made)
    readme = installed / "head_hippocampus" / "docs" / "README.md"
    readme.write_text("new")
    assert (find_bundle("head_hippocampus") / "docs" / "README.md").read_text() == "new"
    assert len(list((tmp_path / "cache" / "monai_vit3d" / "bundles").iterdir())) == 2  # and nothing half made


def test_the_command_lists_the_size_of_what_another_bundle_holds(installed, capsys):
    assert cli.main(["bundles"]) == 0
    assert " 32 MB " in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("head_hippo"))
