"""Layers and functions that know no task: patch embedding, absolute and rotary positions."""

from .attention_pool import ProjectedAttentionPool
from .conv_stem import ConvStem3D
from .head_gate import HeadGatedAttention
from .patch_conv import PatchConv3d, embed_patches
from .patch_embed import PatchEmbed3D, pad_to_patch, resample_patch_kernel, to_3tuple
from .pos_embed import fit_pos_embed, resample_pos_embed, sincos_pos_embed
from .residual_stem import ResidualStem3D, SkipStem3D
from .rope import RotaryPositions3D, keep_rows, rotary_table, set_spacing, split_pairs
from .rotary_block import RotaryBlock

# patch embeddings that have a name: embed_layer="conv_stem" in code and configs
EMBED_LAYERS: dict[str, type[PatchEmbed3D]] = {
    "patch": PatchEmbed3D,
    "conv_stem": ConvStem3D,
    "primus_v2": ResidualStem3D,
    "primus_v3": SkipStem3D,
}

__all__ = [
    "EMBED_LAYERS",
    "ConvStem3D",
    "HeadGatedAttention",
    "PatchConv3d",
    "PatchEmbed3D",
    "ProjectedAttentionPool",
    "ResidualStem3D",
    "RotaryBlock",
    "RotaryPositions3D",
    "SkipStem3D",
    "embed_patches",
    "fit_pos_embed",
    "keep_rows",
    "pad_to_patch",
    "resample_patch_kernel",
    "resample_pos_embed",
    "rotary_table",
    "set_spacing",
    "sincos_pos_embed",
    "split_pairs",
    "to_3tuple",
]
