"""Phantoms: small volumes with two structures, written as NIfTI in the Decathlon's layout."""

import json
import os
from pathlib import Path

import pytest

from tests.helpers import phantom


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
