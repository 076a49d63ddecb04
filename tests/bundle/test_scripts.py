"""A bundle's own Python files: imported from it, from no other bundle, and part of what outputs are made with."""

import sys

import pytest

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.scripts import add_to_sys_path, python_files
from monai_vit3d.data.errors import BundleError
from tests.pipeline.tiny import CONFIG, predict, records, write_bundle


@pytest.fixture(autouse=True)
def as_before(tmp_path):
    """Nothing of these bundles stays importable."""
    path = list(sys.path)
    yield
    add_to_sys_path(tmp_path)
    sys.path[:] = path


def bundle_with(root, width):
    """One whose window is said by a script of its own."""
    write_bundle(root)
    (root / "scripts").mkdir()
    (root / "scripts" / "window.py").write_text(f"WINDOW = [{width}] * 3\n")
    config = CONFIG.replace("[16, 16, 16]", "$WINDOW")
    config = config.replace("  - $import os\n", "  - $import os\n  - $from scripts.window import WINDOW\n")
    (root / "configs" / "inference.yaml").write_text(config)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("package", [True, False])
def test_each_bundle_has_its_own_scripts(tmp_path, package):
    bundles = {width: bundle_with(tmp_path / f"b{width}", width) for width in (16, 20)}
    for root in bundles.values():
        if package:
            (root / "scripts" / "__init__.py").write_text("")
    for width in (16, 20, 16):
        assert load_bundle(bundles[width], "cpu").inferer.roi_size == [width] * 3
    assert [path for path in sys.path if str(tmp_path) in path] == [str(bundles[16].resolve())]


def test_its_scripts_come_before_those_of_the_folder_at_hand(tmp_path, monkeypatch):
    (tmp_path / "here" / "scripts").mkdir(parents=True)
    (tmp_path / "here" / "scripts" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "here")
    bundle = bundle_with(tmp_path / "bundle", 12)
    (bundle / "scripts" / "__init__.py").write_text("")  # as the zoo's have; a folder without one comes last in Python
    assert load_bundle(bundle, "cpu").inferer.roi_size == [12] * 3


def test_a_safe_bundle_imports_nothing_of_its_own(tmp_path):
    path = list(sys.path)
    with pytest.raises(BundleError, match="WINDOW"):
        load_bundle(bundle_with(tmp_path / "bundle", 12), "cpu", safe=True)
    assert sys.path == path


def test_an_environment_in_a_bundle_is_not_its_own(tmp_path):
    for name in ("a.py", "scripts/b.py", ".git/c.py", "env/pyvenv.cfg", "env/lib/d.py", "e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in python_files(tmp_path)] == ["a.py", "scripts/b.py"]


@pytest.mark.slow
def test_what_another_script_made_is_not_kept(tmp_path, cohort):
    bundle, out = bundle_with(tmp_path / "bundle", 16), tmp_path / "out"
    image, script = cohort / "case00.nii.gz", bundle / "scripts" / "window.py"

    def status(*options):
        assert predict(image, to=out, bundle=bundle, options=options, safe=False) == 0
        return records(out)["case00"]["status"]

    assert [status(), status("--resume")] == ["done", "skipped"]
    script.write_text("WINDOW = [20] * 3\n")
    assert [status("--resume"), status("--resume")] == ["done", "skipped"]
