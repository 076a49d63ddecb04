"""Opening a bundle's config: only code is called code, and pipes are refused before they are opened."""

import os
import sys
from pathlib import Path

import pytest

from monai_vit3d.bundle.load import load_bundle
from tests.helpers import run_python
from tests.pipeline.tiny import reconfigure


def test_only_code_is_called_code(bundle, caplog):
    load_bundle(bundle, "cpu")
    assert "is code that runs here" not in caplog.text
    assert str(bundle) not in sys.path
    reconfigure(bundle, more="network: $[print, @network_def][1]\n")
    load_bundle(bundle, "cpu")
    assert caplog.text.count("is code that runs here; safe=True takes settings only") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes as POSIX has them")
@pytest.mark.parametrize("place", ["configs/metadata.json", "scripts/a.py", "models/model.pt", "docs/b", "configs/c"])
def test_a_pipe_in_a_bundle_is_refused_before_it_is_opened(tmp_path, bundle, place):
    (bundle / place).parent.mkdir(exist_ok=True)
    (bundle / place).unlink(missing_ok=True)
    os.mkfifo(bundle / place)
    code, _, err = run_python("-m", "monai_vit3d.cli", "info", str(bundle), cwd=Path(tmp_path))
    assert code == 2
    assert err == f"vit3d: {bundle / place}: a pipe, socket or device; a bundle holds files and folders. Remove it.\n"
