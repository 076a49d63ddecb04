"""Tiny networks, and what torch.save writes of them."""

import io
import os

import torch

from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D


def network(seed=0, embed_dim=12, **options):
    torch.manual_seed(seed)
    vit = VisionTransformer3D(8, 4, embed_dim=embed_dim, depth=2, num_heads=2, **options)
    return TokenSegmenter(vit, "unetr", 2, feature_size=2, norm_name="batch").eval()


def classifier(seed=0, **options):
    torch.manual_seed(seed)
    vit = VisionTransformer3D(8, 4, embed_dim=12, depth=2, num_heads=2)
    return TokenClassifier(vit, "attentive", 3, **options).eval()


def stored(state, **how):
    buffer = io.BytesIO()
    torch.save(state, buffer, **how)
    return buffer.getvalue()


FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)
