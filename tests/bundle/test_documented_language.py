"""docs/safe_bundles.md names every function that a safe bundle may call."""

from monai_vit3d.bundle.allowlist import ALLOWED_CALLS
from tests.helpers import ROOT


def test_every_allowed_call_is_documented():
    text = (ROOT / "docs" / "safe_bundles.md").read_text()
    own = {name.rpartition(".")[2] for name in ALLOWED_CALLS if name.startswith("monai_vit3d.")}
    assert own
    assert {name for name in own if f"{name}`" not in text} == set()
