"""Tiny bundles for the tests of training."""

import pytest

from tests.training.tiny_bundle import write_tiny


@pytest.fixture
def bundle(tmp_path):
    """A bundle of two folds over four scans, which trains two epochs."""
    return write_tiny(tmp_path)
