"""Attention whose heads are gated: by hand, and as an option of the network."""

import pytest
import torch
from timm.layers import AttentionRope

from monai_vit3d.layers import HeadGatedAttention
from monai_vit3d.networks import VisionTransformer3D, model_args
from monai_vit3d.networks.model_args import build_network


@torch.no_grad()
def test_each_heads_output_is_multiplied_by_its_gate():
    torch.manual_seed(0)
    gated = HeadGatedAttention(12, 3).double()
    plain = AttentionRope(12, 3).double()
    plain.load_state_dict({key: value for key, value in gated.state_dict().items() if not key.startswith("gate.")})
    heads, x = [], torch.randn(2, 5, 12, dtype=torch.float64)
    plain.proj.register_forward_pre_hook(lambda module, args: heads.append(args[0]))
    plain(x)
    factors = torch.sigmoid(x @ gated.gate.weight.T + gated.gate.bias)  # a number a token and head
    expected = plain.proj.weight @ (heads[0].reshape(2, 5, 3, 4) * factors[..., None]).reshape(10, 12).T
    torch.testing.assert_close(gated(x).reshape(10, 12), expected.T + plain.proj.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rope", [None, "patch"])
@torch.no_grad()
def test_as_an_option_of_the_network(rope):
    torch.manual_seed(0)
    net = VisionTransformer3D(8, 4, embed_dim=24, depth=1, num_heads=2, attn_layer="head_gated", rope=rope).eval()
    assert type(net.blocks[0].attn) is HeadGatedAttention
    again = build_network(model_args(net)).eval()
    again.load_state_dict(net.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(again(x), net(x))
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))
