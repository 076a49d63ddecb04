"""What a stranger's bundle may read and import with --safe: its own files, and installed packages."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.search_path import without_folders
from monai_vit3d.data import medmnist3d_info, nifti_files
from monai_vit3d.data.confinement import reading_only_below
from monai_vit3d.data.errors import BundleError, WeightsError
from monai_vit3d.weights import load_weights
from tests.helpers import ONE_THREAD, run_python
from tests.pipeline.tiny import CONFIG, arguments

LOADING = "network: $monai_vit3d.weights.load_weights(@network_def, @ckpt_path)\n"


@pytest.fixture
def bundle(tmp_path, tiny_bundle):
    """A bundle of one's own."""
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    return root


def configured(bundle, *changes, more=""):
    """The bundle with its config's text changed."""
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (bundle / "configs" / "inference.yaml").write_text(text.replace("  - $import os", "  - $import monai_vit3d") + more)
    return bundle


OUTSIDE = ["'/elsewhere/model.pt'", "@bundle_root + '/../model.pt'", "@bundle_root + '/models/../../model.pt'"]


@pytest.mark.parametrize("path", [*OUTSIDE, "@bundle_root + '/models/link.pt'"])
def test_weights_outside_the_bundle_are_not_opened(bundle, path):
    shutil.copy(bundle / "models" / "model.pt", bundle.parent / "model.pt")
    (bundle / "models" / "link.pt").symlink_to(bundle.parent / "model.pt")
    configured(bundle, more=f"network: $monai_vit3d.weights.load_weights(@network_def, {path})\n")
    with pytest.raises(BundleError, match=r"outside the bundle .* safe=True a bundle reads its own files only"):
        load_bundle(bundle, "cpu", safe=True)


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_checkpoint_outside_the_bundle(bundle, path):
    configured(bundle, ("$@bundle_root + '/models/model.pt'", f"${path}"))
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(bundle, "cpu", safe=True)


def test_other_functions_that_take_paths(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "info.json").write_text("{}")
    torch.save({}, tmp_path / "a.pt")
    with reading_only_below(tmp_path / "in"):
        for call in (
            lambda: nifti_files(tmp_path),
            lambda: nifti_files(tmp_path / "in" / ".."),
            lambda: medmnist3d_info("a", tmp_path / "info.json"),
            lambda: load_weights(torch.nn.Identity(), tmp_path / "a.pt"),
        ):
            with pytest.raises(BundleError, match="outside the bundle"):
                call()
    load_weights(torch.nn.Identity(), tmp_path / "a.pt")


# weights: by reference, compared, hashed as they ran


def test_a_network_that_loaded_the_file_itself_is_left_alone(bundle):
    configured(bundle, more=LOADING)
    network = load_bundle(bundle, "cpu", safe=True).network
    assert network.weight.flatten().tolist() == [0.0, 100.0, 200.0]


@pytest.mark.parametrize(
    "more",
    [
        "ckpt_path_old: b\nnetwork: $@network_def if len(@ckpt_path_old) else 0\n",
        "network: $dict(x='ckpt_path', n=@network_def)['n']\n",
    ],
)
def test_a_text_is_no_reference(bundle, more):
    configured(bundle, more=more)
    network = load_bundle(bundle, "cpu", safe=True).network
    assert network.weight.flatten().tolist() == [0.0, 100.0, 200.0]


def test_a_reference_in_another_entry_counts(bundle):
    loaded = "loaded: $monai_vit3d.weights.load_weights(@network_def, @ckpt_path)\nnetwork: $@loaded.to(@device)\n"
    configured(bundle, more=loaded)
    assert load_bundle(bundle, "cpu", safe=True).network.weight.flatten().tolist() == [0.0, 100.0, 200.0]


def test_other_weights_than_the_files_are_refused(bundle):
    other = {key: value + 1 for key, value in torch.load(bundle / "models" / "model.pt").items()}
    torch.save(other, bundle / "models" / "other.pt")
    path = "@bundle_root + '/models/other.pt'"
    configured(bundle, more=f"network: $[monai_vit3d.weights.load_weights(@network_def, {path}), @ckpt_path][0]\n")
    with pytest.raises(WeightsError, match=r"holds other weights \(weight differs\)"):
        load_bundle(bundle, "cpu", safe=True)


@pytest.mark.parametrize("victim", ["models/model.pt", "configs/inference.yaml", "configs/extra.txt"])
def test_files_that_change_while_they_are_loaded_are_refused(bundle, victim):
    (bundle / "configs" / "extra.txt").write_text("a")
    code = f"open(@bundle_root + '/{victim}', 'ab').write(b'#')"
    configured(bundle, more=f"network: $[@network_def, {code}][0]\n")
    with pytest.raises((BundleError, WeightsError), match=r"changed while|not a readable"):
        load_bundle(bundle, "cpu")


# imports


EVIL = "from pathlib import Path\n\nPath(r'{marker}').write_text(__name__)\nraise ImportError(__name__)\n"
NAMES = ("itk", "cupy", "nrrd", "skimage", "json", "typing", "argparse", "contextlib", "__future__", "tqdm", "jinja2")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["current folder", "bundle", "PYTHONPATH"])
@pytest.mark.parametrize(
    "way", [["-m", "monai_vit3d.cli"], ["-c", "from monai_vit3d.cli import run_process; run_process()"]]
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
    if way[0] == "-c":
        for name in NAMES[4:]:
            (here / f"{name}.py").unlink()
            (bundle / f"{name}.py").unlink(missing_ok=True)
    folder = bundle if where == "bundle" else here
    command = arguments(cohort / "case00.nii.gz", to=tmp_path / "out", bundle=bundle)
    code, _, err = run_python(*way, *command, cwd=folder, env={**ONE_THREAD, **env})
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


# what is said


def test_only_code_is_called_code(bundle, caplog):
    load_bundle(bundle, "cpu")
    assert "is code that runs here" not in caplog.text
    assert str(bundle) not in sys.path
    configured(bundle, more="network: $[print, @network_def][1]\n")
    load_bundle(bundle, "cpu")
    assert caplog.text.count("is code that runs here; safe=True takes settings only") == 1


# pipes and the like


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes as POSIX has them")
@pytest.mark.parametrize("place", ["configs/metadata.json", "scripts/a.py", "models/model.pt", "docs/b", "configs/c"])
def test_a_pipe_in_a_bundle_is_refused_before_it_is_opened(tmp_path, bundle, place):
    (bundle / place).parent.mkdir(exist_ok=True)
    (bundle / place).unlink(missing_ok=True)
    os.mkfifo(bundle / place)
    code, _, err = run_python("-m", "monai_vit3d.cli", "info", str(bundle), cwd=Path(tmp_path))
    assert code == 2
    assert err == f"vit3d: {bundle / place}: a pipe, socket or device; a bundle holds files and folders. Remove it.\n"
