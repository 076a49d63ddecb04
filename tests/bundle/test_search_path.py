"""Under --safe nothing is imported from the current folder or the bundle."""

import os
import sys
from pathlib import Path

import pytest

from monai_vit3d.bundle.search_path import without_folders
from tests.helpers import run_python
from tests.pipeline.tiny import arguments

EVIL = "from pathlib import Path\n\nPath(r'{marker}').write_text(__name__)\nraise ImportError(__name__)\n"
OF_OTHERS = ("itk", "cupy", "nrrd", "skimage")
# Python imports those of its own from PYTHONPATH and for -c before anything of ours runs
NAMES = (*OF_OTHERS, "json", "typing", "argparse", "contextlib", "__future__", "tqdm", "jinja2")


def evil(folder, names, marker):
    """Modules that say that they were imported."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(EVIL.format(marker=marker))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["module", "torchrun", "script"])
def test_nothing_is_imported_from_here(tmp_path, bundle, cohort, way):
    """Neither from the current folder nor from the bundle, which is in PYTHONPATH or the current folder itself."""
    here, marker = tmp_path / "here", tmp_path / "ran"
    command = arguments(cohort / "case00.nii.gz", to=tmp_path / "out", bundle=bundle)
    if way != "script":
        launcher = [] if way == "module" else [Path(sys.executable).with_name("torchrun"), "--nproc_per_node=1"]
        evil(here, NAMES, marker)
        evil(bundle, OF_OTHERS, marker)
        words = [*launcher, "-m", "monai_vit3d.cli", *command]
        code, _, err = run_python(*words, cwd=here, env={"PYTHONPATH": str(bundle)})
    else:
        evil(bundle, OF_OTHERS, marker)
        code = "from monai_vit3d.cli import run_process; run_process()"
        code, _, err = run_python("-c", code, *command, cwd=bundle, env={"PYTHONPATH": ""})
    assert code == 0, err
    assert not marker.exists(), marker.read_text()


def test_the_search_path_comes_back_and_keeps_installed_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle, inside = tmp_path / "bundle", tmp_path / "bundle" / "lib" / "site-packages"
    inside.mkdir(parents=True)
    kept = [*sys.path, str(inside)]
    # an editable install has an entry that is no path; its modules come by a finder of their own
    kept = [entry for entry in kept if os.path.isabs(entry) and os.path.realpath(entry) != str(tmp_path)]
    dropped = [
        "",
        ".",
        "relative",
        "__editable__.name.finder.__path_hook__",
        str(tmp_path),
        str(bundle),
        str(bundle / "scripts"),
        f"{bundle}/../bundle",
    ]
    before = [*dropped, *kept]
    monkeypatch.setattr(sys, "path", list(before))
    with without_folders(bundle):
        assert sys.path == kept
    assert sys.path == before
