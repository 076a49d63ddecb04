"""Explain networks: attention and saliency maps on the volume's own voxels."""

from .attention import AttentionMaps, attention_maps
from .inferer import ExplainInferer
from .saliency import TokenGradCAM, grad_cam, occlusion_map

__all__ = ["AttentionMaps", "ExplainInferer", "TokenGradCAM", "attention_maps", "grad_cam", "occlusion_map"]
