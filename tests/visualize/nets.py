"""Tiny networks, and what the tests of maps compare with."""

import numpy as np
import torch
from torch import nn

from monai_vit3d.networks import TokenClassifier, VisionTransformer3D
from tests.helpers import randn

SIZE, PATCH, GRID = (6, 9, 3), (3, 3, 1), (2, 3, 3)  # odd patches: each has a voxel in its middle
TINY = {"embed_dim": 24, "depth": 3, "num_heads": 3}


def vit(size=SIZE, patch=PATCH, **options):
    torch.manual_seed(0)
    net = VisionTransformer3D(size, patch, **{"num_classes": 3, **TINY, **options})
    return roughened(net)


def classifier(head="attentive", out_indices=None, freeze=None, task="multi-class", backbone=None, **options):
    backbone = {"num_classes": 0, **(backbone or {})}
    return roughened(
        TokenClassifier(vit(**backbone), head, 3, task=task, out_indices=out_indices, freeze=freeze, **options)
    )


def roughened(net):
    """Far from its start, where attention is nearly uniform."""
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return net.eval()


def looking_at_bright_patches(size, patch, **options):
    """A network whose class token attends to bright patches: keys read the patch's mean, queries are constant."""
    net = VisionTransformer3D(size, patch, embed_dim=8, depth=2, num_heads=1, num_classes=2, **options)
    for p in net.parameters():
        p.data.zero_()
    net.patch_embed.proj.weight.data[0] = 1 / net.patch_embed.proj.weight[0].numel()
    net.patch_embed.proj.bias.data[1] = 1  # a norm of tokens along one channel alone would hide their length
    for block in net.blocks:
        block.norm1.weight.data.fill_(1)
        block.attn.qkv.bias.data[0] = 10  # query
        block.attn.qkv.weight.data[8, 0] = 10  # key
    return net


def volume(*shape, seed=2):
    return randn(*shape, seed=seed, dtype=torch.float32)


def patch_values(voxels):
    """The values in the middle of each patch of PATCH: ``(B, N)``."""
    return voxels[:, 0, 1::3, 1::3, :].flatten(1)


def interpolated(grid, patch, size):
    """Patch grid ``(B, 1, H', W', D')`` on voxels by numpy's interpolation, axis by axis."""
    out = grid.detach().numpy().astype(np.float64)
    for axis, (p, s) in enumerate(zip(patch, size), start=2):
        centres = np.arange(out.shape[axis]) * p + (p - 1) / 2
        out = np.apply_along_axis(lambda v, c=centres, n=s: np.interp(np.arange(n), c, v), axis, out)
    return torch.from_numpy(out).float()


def condition(net):
    """Everything that a look at a network could change and must not."""
    modules = dict(net.named_modules())
    return {
        "state": {k: v.clone() for k, v in net.state_dict().items()},
        "modes": {k: m.training for k, m in modules.items()},
        "fused": {k: m.fused_attn for k, m in modules.items() if hasattr(m, "fused_attn")},
        "hooks": {
            k: [len(h) for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)] for k, m in modules.items()
        },
        "grads": {k: (p.requires_grad, None if p.grad is None else p.grad.clone()) for k, p in net.named_parameters()},
    }


def assert_same_condition(before, net):
    now = condition(net)
    assert all(torch.equal(v, now["state"][k]) for k, v in before["state"].items())
    assert [now[k] for k in ("modes", "fused", "hooks")] == [before[k] for k in ("modes", "fused", "hooks")]
    for name, (requires_grad, grad) in before["grads"].items():
        assert now["grads"][name][0] == requires_grad
        assert (grad is None) == (now["grads"][name][1] is None), name
        assert grad is None or torch.equal(grad, now["grads"][name][1])


class Raises(nn.Module):
    def forward(self, *_):
        raise RuntimeError("broken")
