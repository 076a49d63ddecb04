"""A bundle that a test may change."""

import shutil

import pytest


@pytest.fixture
def bundle(tmp_path, tiny_bundle):
    """A copy of the tiny bundle."""
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    return root
