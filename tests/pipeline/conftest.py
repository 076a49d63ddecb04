"""The tiny bundle, and a small cohort that went through it once without a hitch."""

from __future__ import annotations

import pytest


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
