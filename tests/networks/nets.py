"""A tiny backbone in float64 for exact comparisons."""

import torch

from monai_vit3d.networks import VisionTransformer3D
from tests.helpers import randn

# three different sides, an anisotropic patch, and a (2, 3, 4) grid
TINY = {"img_size": (8, 12, 8), "patch_size": (4, 4, 2), "embed_dim": 24, "depth": 3, "num_heads": 2}


def noisy(**options):
    """A tiny network in float64 and eval mode, with noise on every parameter."""
    torch.manual_seed(0)
    net = VisionTransformer3D(**{**TINY, **options}).double().eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(0.2 * randn(*p.shape, seed=i))
    return net
