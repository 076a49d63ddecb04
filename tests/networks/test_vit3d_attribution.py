"""Captum's attributions on the patch projection: they add up to the change of the output, as its axiom says."""

import pytest
import torch

from monai_vit3d import TokenClassifier, VisionTransformer3D

captum = pytest.importorskip("captum.attr")


@pytest.mark.parametrize("kind", ["backbone", "padded backbone", "classifier"])
def test_integrated_gradients_of_the_patch_projection_add_up(kind):
    torch.manual_seed(0)
    backbone = VisionTransformer3D(
        (8, 8, 4), (4, 4, 2), embed_dim=12, depth=2, num_heads=2, num_classes=2, dynamic_img_pad=kind != "backbone"
    )
    network = TokenClassifier(backbone, "linear", num_classes=2) if kind == "classifier" else backbone
    network = network.double().eval()
    x, baseline = torch.randn(2, 1, 8, 8, 4, dtype=torch.float64), torch.zeros(2, 1, 8, 8, 4, dtype=torch.float64)
    attribution = captum.LayerIntegratedGradients(lambda x: network(x)[:, 0], backbone.patch_embed.proj)
    attributions = attribution.attribute(x, baseline, n_steps=64)
    assert attributions.shape == (2, 12, 2, 2, 2)
    change = (network(x) - network(baseline))[:, 0].detach()
    assert change.abs().min() > 1e-3
    torch.testing.assert_close(attributions.flatten(1).sum(1), change, atol=1e-5, rtol=1e-4)
