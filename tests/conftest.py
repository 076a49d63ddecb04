"""Phantoms: small volumes with two structures, written as NIfTI in the Decathlon's layout."""

import json
import os
from pathlib import Path

import hypothesis
import pytest

from tests.helpers import phantom

# The one place for how often properties are tried; slow ones set fewer examples. A loaded machine is no failure, more
# examples seldom find more, and a folder that all examples of a test share is meant.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Networks that tests export do not push those of the user out of the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def phantom_task(tmp_path_factory):
    """A Decathlon-like task of 12 phantoms with its split file: ``(dataset_dir, split_file)``."""
    root = tmp_path_factory.mktemp("task")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    cases = [f"phantom_{i:02d}" for i in range(12)]
    for i, case in enumerate(cases):
        image, label = phantom(i)
        image.to_filename(root / "imagesTr" / f"{case}.nii.gz")
        label.to_filename(root / "labelsTr" / f"{case}.nii.gz")
    split = root / "split.json"
    split.write_text(json.dumps({"training": cases[:8], "validation": cases[8:10], "test": cases[10:]}))
    return root, split


@pytest.fixture(scope="session")
def decathlon_hippocampus():
    """The folder of MSD Task04; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "Task04_Hippocampus"
    if not (folder / "imagesTr").is_dir():
        pytest.skip("MSD Task04_Hippocampus is not under MONAI_DATA_DIRECTORY (MONAI's DecathlonDataset fetches it)")
    return folder


@pytest.fixture(scope="session")
def adrenal_mnist():
    """The folder of MedMNIST's AdrenalMNIST3D in size 64; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MEDMNIST_ROOT", "."))
    if not (folder / "adrenalmnist3d_64.npz").is_file():
        pytest.skip("adrenalmnist3d_64.npz is not under MEDMNIST_ROOT (zenodo.org/records/10519652)")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """The bundle's folder; not to be changed."""
    from tests.pipeline.tiny import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """A folder with six images; not to be changed."""
    from tests.pipeline.tiny import write_images

    folder = tmp_path_factory.mktemp("cohort") / "scans"
    write_images(folder, 6)
    return folder


@pytest.fixture(scope="session")
def clean_run(tmp_path_factory, tiny_bundle, cohort):
    """OUT of one run over the cohort; not to be changed."""
    from tests.pipeline.tiny import predict

    out = tmp_path_factory.mktemp("clean") / "out"
    assert predict(cohort, to=out, bundle=tiny_bundle) == 0
    return out


@pytest.fixture
def tree(tmp_path):
    """Maker of empty files below tmp_path/data; returns that folder."""

    def make(*names):
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).touch()
        return tmp_path / "data"

    return make


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items):
    """Mark a test's rows between the first and the last as slow: ``-m "not slow"`` runs each test, but not each row."""
    rows = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            rows.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for same in rows.values():
        for item in same[1:-1]:
            item.add_marker(pytest.mark.slow)
