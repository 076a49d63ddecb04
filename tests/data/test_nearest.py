"""Names that were meant, wherever something is found by a name."""

import subprocess
import sys

import pytest

from monai_vit3d import VisionTransformer3D, create_model
from monai_vit3d.bundle.unpack import open_bundle
from monai_vit3d.data.nearest import did_you_mean
from monai_vit3d.decoders import decoder_class
from monai_vit3d.networks import TokenClassifier
from monai_vit3d.networks.presets import create_preset


def test_the_nearest_or_none():
    assert did_you_mean("uneter", ["dpt", "unetr"]) == " Did you mean unetr?"
    assert did_you_mean("resnet", iter(["dpt", "unetr"])) == ""


def small():
    return VisionTransformer3D(16, 8, embed_dim=24, depth=1, num_heads=2)


@pytest.mark.parametrize(
    ("ask", "meant"),
    [
        (lambda: decoder_class("unet"), "unetr"),
        (lambda: TokenClassifier(small(), "linaer", 2), "linear"),
        (lambda: create_preset("vit3d_smal", 16, 8), "vit3d_small"),
        (lambda: create_model("vit3d_smal", 16, 8), "vit3d_small"),
        (lambda: create_model("colipry"), "colipri"),
        (lambda: create_model("vit_smal_patch16_224", (32, 32, 32), 16), "vit_small_patch16_224"),
        (lambda: open_bundle("head_hipocampus").__enter__(), "head_hippocampus"),
    ],
)
def test_what_was_meant_is_asked(ask, meant):
    with pytest.raises(ValueError, match=f"Did you mean {meant}\\?$"):
        ask()


def test_python_asks_for_public_names():
    code = "import monai_vit3d; monai_vit3d.VisonTransformer3D"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("Did you mean: 'VisionTransformer3D'?")
