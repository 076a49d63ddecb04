"""Small networks and volumes for the tests of engines."""

import torch

from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D
from tests.helpers import randn

SIZE = (16, 16, 16)


def backbone(depth=2, **options):
    torch.manual_seed(0)
    return VisionTransformer3D(SIZE, 4, embed_dim=48, depth=depth, num_heads=4, **options)


def segmenter(**options):
    return TokenSegmenter(backbone(**options), "unetr", 3, feature_size=4).eval()


def classifier(**options):
    return TokenClassifier(backbone(**options), "attentive", 3, out_indices=(0, 1)).eval()


def shallow_classifier():
    """One block and a linear head: few kernels to compile."""
    return TokenClassifier(backbone(depth=1), "linear", 3, out_indices=(0,)).eval()


def volumes(batch=2, seed=1):
    return randn(batch, 1, *SIZE, seed=seed, dtype=torch.float32)


def engines(network):
    return [type(engine).__name__ for engine in network._engines.values() if engine is not None]
