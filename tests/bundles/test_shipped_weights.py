"""Weights that are shipped are those that the bundle's metadata.json names."""

import hashlib
import json

import pytest

from tests.helpers import BUNDLES

DESCRIBED = sorted(path.parent.parent for path in BUNDLES.glob("*/configs/metadata.json"))


@pytest.mark.parametrize("bundle", DESCRIBED, ids=lambda path: path.name)
def test_every_shipped_file_of_weights_has_its_sum(bundle):
    named = json.loads((bundle / "configs" / "metadata.json").read_text()).get("weights_sha256", {})
    shipped = [path for path in (bundle / "models").glob("*") if path.suffix in (".pt", ".safetensors")]
    sums = {path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped}
    assert named == sums
