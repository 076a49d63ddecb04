"""The convolutional stem: as many tokens in the same order as the patch embedding, each looking at its surroundings."""

import pytest
import torch

from monai_vit3d.layers import ConvStem3D, PatchEmbed3D
from monai_vit3d.layers.conv_stem import halvings
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D


def network(**options):
    torch.manual_seed(0)
    sizes = {"img_size": (32, 16, 8), "patch_size": (8, 4, 2), "embed_dim": 24, "depth": 3, "num_heads": 2}
    return VisionTransformer3D(**{**sizes, "embed_layer": ConvStem3D, "global_pool": "avg", **options}).eval()


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((8, 8, 8), [(2, 2, 2)] * 3),
        ((16, 16, 4), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((4, 1, 1), [(2, 1, 1), (2, 1, 1)]),
        ((1, 1, 1), []),
    ],
)
def test_strides_multiply_to_the_patch(patch, strides):
    assert halvings(patch) == strides
    stem = ConvStem3D((16, 16, 16), patch, in_chans=2, embed_dim=16)
    assert (
        stem(torch.randn(2, 2, 16, 16, 16)).shape == PatchEmbed3D(16, patch, 2, 16)(torch.randn(2, 2, *[16] * 3)).shape
    )


@torch.no_grad()
def test_tokens_stand_where_their_patches_do():
    stem = ConvStem3D((16, 8, 8), (4, 4, 2), embed_dim=8).double().eval()
    for norm in stem.stem[1::3]:  # instance norms spread every change over the whole volume
        norm.eval().track_running_stats = True
        norm.running_mean, norm.running_var = (
            torch.zeros(norm.num_features).double(),
            torch.ones(norm.num_features).double(),
        )
    volume = torch.zeros(1, 1, 16, 8, 8, dtype=torch.float64)
    bumped = volume.clone()
    bumped[0, 0, 9, 5, 3] = 1.0
    change = (stem(bumped) - stem(volume)).abs().sum(-1).reshape(4, 2, 4)
    assert change[2, 1, 1] > 0
    assert change[0].sum() == 0


@pytest.mark.slow
def test_options_of_the_backbone_hold():
    net, volume = network(num_classes=3), torch.randn(2, 1, 32, 16, 8)
    torch.testing.assert_close(torch.jit.script(net)(volume), net(volume))
    net.set_input_size(img_size=(16, 16, 8))
    assert net(volume[:, :, :16]).shape == (2, 3)
    with pytest.raises(ValueError, match=r"keeps the \(8, 4, 2\)"):
        net.set_input_size(patch_size=4)
    free = network(dynamic_img_size=True, dynamic_img_pad=True)
    assert free.forward_features(torch.randn(1, 1, 30, 9, 11)).shape == (1, 1 + 4 * 3 * 6, 24)
    with pytest.raises(ValueError, match=r"\(12, 12, 12\).*powers of two"):
        ConvStem3D(24, 12)


def test_every_parameter_learns():
    net = TokenSegmenter(network(class_token=False), "unetr", num_classes=2, feature_size=4)
    net(torch.randn(1, 1, 32, 16, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
