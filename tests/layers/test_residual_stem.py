"""The residual stems of Primus V2 and V3: any patch, and every option of the patch embedding.

That they compute what Primus computes is seen in tests/weights/convert/test_published.py.
"""

import pytest
import torch

from monai_vit3d.layers import ResidualStem3D, SkipStem3D
from monai_vit3d.layers.residual_stem import stage_strides
from monai_vit3d.networks import VisionTransformer3D, model_args
from monai_vit3d.networks.model_args import build_network


def network(**options):
    torch.manual_seed(0)
    sizes = {"img_size": (24, 16, 8), "patch_size": (6, 4, 2), "embed_dim": 24, "depth": 1, "num_heads": 2}
    return VisionTransformer3D(**{**sizes, "embed_layer": "primus_v3", "global_pool": "avg", **options}).eval()


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((8, 8, 8), [(2, 2, 2)] * 3),
        ((16, 16, 4), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((12, 14, 5), [(2, 1, 1), (2, 2, 1), (3, 7, 5)]),
        ((1, 1, 1), [(1, 1, 1)]),
    ],
)
def test_strides_multiply_to_the_patch(patch, strides):
    assert stage_strides(patch) == strides


@pytest.mark.parametrize(
    ("kind", "widths"), [(ResidualStem3D, (32, 32, 64, 128, 256)), (SkipStem3D, (32, 64, 256, 1024, 1024))]
)
def test_widths_of_the_published_stems_and_beyond(kind, widths):
    stem = kind(16, 16, embed_dim=8, device="meta")
    assert tuple(stage.conv2.out_channels for stage in stem.stages) == widths
    assert stem.proj.kernel_size == (1, 1, 1)


@torch.no_grad()
def test_skips_start_close_to_nothing_and_see_each_stage():
    net = network()
    assert torch.equal(net.patch_embed.skip_scales, torch.full((2,), 1e-5))
    assert [skip.kernel_size for skip in net.patch_embed.skips] == [(6, 4, 2), (3, 2, 2)]
    x = torch.randn(1, 1, 24, 16, 8)
    before = net.patch_embed(x)
    for i in (0, 1):
        net.patch_embed.skip_scales[i] = 1.0
        assert not torch.allclose(net.patch_embed(x), before, atol=1e-3)
        net.patch_embed.skip_scales[i] = 1e-5
    net.init_weights()
    assert torch.equal(net.patch_embed.skip_scales, torch.full((2,), 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"embed_layer": "primus_v2"}], ids=str)
def test_options_of_the_backbone_hold(options):
    net, volume = network(num_classes=3, **options), torch.randn(2, 1, 24, 16, 8)
    torch.testing.assert_close(torch.jit.script(net)(volume), net(volume))
    net.set_input_size(img_size=(12, 16, 8))
    assert net(volume[:, :, :12]).shape == (2, 3)
    with pytest.raises(ValueError, match=r"keeps the \(6, 4, 2\)"):
        net.set_input_size(patch_size=4)
    free = network(dynamic_img_size=True, dynamic_img_pad=True, **options)
    assert free.forward_features(torch.randn(1, 1, 13, 9, 5)).shape == (1, 1 + 3 * 3 * 3, 24)


@torch.no_grad()
def test_recorded_arguments_build_it_again_with_widths_of_its_own():
    stem = {"embed_layer": lambda **options: SkipStem3D(**options, widths=(4, 8, 12))}
    net = network(**stem)
    assert model_args(net)["embed_options"] == {"widths": [4, 8, 12]}
    again = build_network(model_args(net)).eval()
    again.load_state_dict(net.state_dict())
    x = torch.randn(1, 1, 24, 16, 8)
    assert torch.equal(again(x), net(x))
    with pytest.raises(ValueError, match=r"widths=\(8, 8\); a patch of \(4, 4, 4\) has 3 stages"):
        ResidualStem3D(8, 4, widths=(8, 8))
