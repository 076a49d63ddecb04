"""Under --safe nothing is imported from the current folder or the bundle."""

import os
import sys

import pytest

from monai_vit3d.bundle.search_path import without_folders
from tests.helpers import ONE_THREAD, run_python
from tests.pipeline.tiny import arguments

EVIL = "from pathlib import Path\n\nPath(r'{marker}').write_text(__name__)\nraise ImportError(__name__)\n"
NAMES = ("itk", "cupy", "nrrd", "skimage", "json", "typing", "argparse", "contextlib", "__future__", "tqdm", "jinja2")


COMMANDS = {
    "module": ["-m", "monai_vit3d.cli"],
    "script": ["-c", "from monai_vit3d.cli import run_process; run_process()"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "way"), [("current folder", "module"), ("bundle", "script"), ("PYTHONPATH", "module")]
)
def test_nothing_is_imported_from_here(tmp_path, bundle, cohort, where, way):
    here = tmp_path / "here"
    here.mkdir()
    for folder in (here, bundle):
        for name in NAMES:
            (folder / f"{name}.py").write_text(EVIL.format(marker=tmp_path / "ran"))
    env = {"PYTHONPATH": ""} if where != "PYTHONPATH" else {"PYTHONPATH": str(bundle)}
    if where == "PYTHONPATH":
        for name in NAMES[4:]:  # Python itself imports those before anything of ours runs
            (bundle / f"{name}.py").unlink()
    if way == "script":
        for name in NAMES[4:]:
            (here / f"{name}.py").unlink()
            (bundle / f"{name}.py").unlink(missing_ok=True)
    folder = bundle if where == "bundle" else here
    command = arguments(cohort / "case00.nii.gz", to=tmp_path / "out", bundle=bundle)
    code, _, err = run_python(*COMMANDS[way], *command, cwd=folder, env={**ONE_THREAD, **env})
    assert code == 0, err
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_the_search_path_comes_back_and_keeps_installed_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle, inside = tmp_path / "bundle", tmp_path / "bundle" / "lib" / "site-packages"
    inside.mkdir(parents=True)
    kept = [*sys.path, str(inside)]
    kept = [entry for entry in kept if entry and os.path.realpath(entry) != str(tmp_path)]
    dropped = ["", ".", "relative", str(tmp_path), str(bundle), str(bundle / "scripts"), f"{bundle}/../bundle"]
    before = [*dropped, *kept]
    monkeypatch.setattr(sys, "path", list(before))
    with without_folders(bundle):
        assert sys.path == kept
    assert sys.path == before
