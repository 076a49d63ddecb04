"""The balls as MedMNIST3D-like data sets, and a whole head with the labels of a module's bundle ``HEAD``."""

import json

import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from monai_vit3d.pipeline.predictor import Predictor
from tests.bundles.balls import NAMES, SECTIONS, SIZE, ball


def _entry(task, names):
    label = {str(i): name for i, name in enumerate(names)}
    return {"task": task, "label": label, "n_channels": 1, "n_samples": SECTIONS, "size": SIZE}


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """A folder with the balls under labels of every task, an npz each, and ``sets.json``, which describes them."""
    root = tmp_path_factory.mktemp("balls")
    sets = {
        # an annotator's slip in each section: no network is always right, calibration always has something to do
        "balls": (_entry("multi-class", NAMES), lambda kind, i: [kind if i else (kind + 1) % 3]),
        "grades": (_entry("ordinal-regression", NAMES), lambda kind, i: [kind]),
        "findings": (_entry("multi-label, binary-class", ["large", "odd"]), lambda kind, i: [kind == 2, i % 2]),
        "radius": (_entry("regression", ["radius_mm"]), lambda kind, i: [2.5 + 1.5 * kind]),
    }
    rng = np.random.default_rng(0)
    kinds = {section: rng.permutation(np.arange(count) % 3) for section, count in SECTIONS.items()}
    images = {f"{section}_images": np.stack([ball(k, rng) for k in kinds[section]]) for section in SECTIONS}
    for name, (_, label) in sets.items():
        rows = {f"{s}_labels": np.array([label(k, i) for i, k in enumerate(kinds[s])]) for s in SECTIONS}
        np.savez(root / f"{name}_{SIZE}.npz", **images, **rows)
    (root / "sets.json").write_text(json.dumps({name: entry for name, (entry, _) in sets.items()}))
    return root


@pytest.fixture(scope="module")
def head():
    return load_mni152_template(resolution=1)


@pytest.fixture(scope="module")
def predictor(request):
    return Predictor(request.module.HEAD, safe=True)


@pytest.fixture(scope="module")
def labels(head, predictor):
    return np.asarray(predictor.predict(head).dataobj)
