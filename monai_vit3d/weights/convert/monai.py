"""MONAI's UNETR (monai.networks.nets.UNETR) to TokenSegmenter and back."""

from __future__ import annotations

from typing import Any

from monai.networks.blocks import UnetResBlock
from monai.networks.nets import UNETR
from torch import Tensor, nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.decoders import UNETRDecoder
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D

from .monai_keys import KERNEL, LINEAR, RENAMES, STALE, kernel_to_linear, linear_to_kernel, renamed
from .monai_vit import check_proj_type, there_and_back
from .shapes import mlp_ratio

MONAI_TAPS = (3, 6, 9)  # what MONAI's UNETR reads: the outputs of its blocks 4, 7 and 10

# MONAI's key, ours; both ways
_RENAMES = [
    *[(f"vit.{monai}", f"backbone.{ours}") for monai, ours in RENAMES],
    *[(f"encoder{n}.", f"decoder.tap_branches.{4 - n}.") for n in (2, 3, 4)],
    *[(f"decoder{n}.", f"decoder.up_blocks.{5 - n}.") for n in (5, 4, 3, 2)],
    ("encoder1.", "decoder.image_branch."),
    ("out.", "decoder.head."),
]
_LINEAR, _KERNEL = (f"vit.{key.removesuffix('weight')}" for key in (LINEAR, KERNEL))


def _rename(key: str, forward: bool) -> str:
    name = renamed(key, _RENAMES, forward)
    if not name:
        whose = "a MONAI UNETR" if forward else "a TokenSegmenter with UNETRDecoder"
        raise WeightsError(f"key {key!r} is none of {whose}.")
    return name


def from_monai_unetr(unetr: UNETR) -> TokenSegmenter:
    """Convert a MONAI UNETR to the TokenSegmenter that computes the same, with its weights.

    Args:
        unetr: a 3D UNETR with either patch embedding; a linear one becomes the convolution that computes the same.

    Returns:
        A segmenter on the same device, in the same dtype and mode.

    Raises:
        WeightsError: a UNETR in 2D, or with norms of another kind than instance and batch.
    """
    if len(unetr.patch_size) != 3:
        raise WeightsError(f"a UNETR in {len(unetr.patch_size)}D; expected a 3D UNETR (spatial_dims=3).")
    block, state = unetr.vit.blocks[0], _with_kernel(unetr.state_dict(), tuple(unetr.patch_size))
    weight = state[f"{_KERNEL}weight"]
    dropout = block.mlp.drop1.p
    backbone = VisionTransformer3D(
        img_size=tuple(g * p for g, p in zip(unetr.feat_size, unetr.patch_size)),
        patch_size=tuple(unetr.patch_size),
        in_chans=weight.shape[1],
        embed_dim=unetr.hidden_size,
        depth=len(unetr.vit.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=mlp_ratio(unetr.hidden_size, block.mlp.linear1.out_features),
        qkv_bias=block.attn.qkv.bias is not None,
        class_token=False,
        global_pool="",
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        attn_drop_rate=dropout,
    )
    decoder = UNETRDecoder(
        in_chans=weight.shape[1],
        embed_dim=unetr.hidden_size,
        patch_size=tuple(unetr.patch_size),
        num_classes=unetr.out.conv.conv.out_channels,
        feature_size=unetr.encoder1.layer.conv1.conv.out_channels,
        **_decoder_options(unetr.encoder1, unetr.encoder2),
    )
    net = TokenSegmenter(backbone, decoder, out_indices=MONAI_TAPS).to(weight.device, weight.dtype)
    net.load_state_dict({_rename(k, True): v for k, v in state.items() if not STALE.match(k)})
    return net.train(unetr.training)


def _with_kernel(state: dict[str, Tensor], patch: tuple[int, int, int]) -> dict[str, Tensor]:
    """Rewrite the state dict of a UNETR with a linear patch embedding as that of one with a convolution."""
    if f"{_LINEAR}weight" not in state:
        return state
    kernel = linear_to_kernel(state[f"{_LINEAR}weight"], patch)
    rest = {key.replace(_LINEAR, _KERNEL): value for key, value in state.items()}
    return {**rest, f"{_KERNEL}weight": kernel}


def _norm_options(norm: nn.Module) -> tuple[str, dict[str, Any]]:
    if isinstance(norm, nn.InstanceNorm3d):
        return "instance", {"eps": norm.eps, "affine": norm.affine}
    if isinstance(norm, nn.BatchNorm3d):
        return "batch", {"eps": norm.eps, "momentum": norm.momentum, "affine": norm.affine}
    raise WeightsError(f"this network has {norm}; expected norm_name 'instance' or 'batch'.")


def _decoder_options(image_branch: nn.Module, finest_tap: nn.Module) -> dict[str, Any]:
    """Read the options that both projects name alike off MONAI's blocks, of which both are made."""
    return {
        "norm_name": _norm_options(image_branch.layer.norm1),
        "res_block": isinstance(image_branch.layer, UnetResBlock),
        "conv_block": type(finest_tap.blocks[0]) is nn.Sequential,
    }


def to_monai_unetr(segmenter: TokenSegmenter, proj_type: str = "conv") -> UNETR:
    """Convert a TokenSegmenter to the MONAI UNETR that computes the same, with its weights.

    Args:
        segmenter: a patch of 16, 12 blocks, out_indices 3, 6, 9, no prefix tokens, learned positions, UNETRDecoder.
        proj_type: MONAI's kind of patch embedding, ``"conv"`` or ``"perceptron"``; they compute the same.

    Returns:
        A UNETR on the same device, in the same dtype and mode.

    Raises:
        WeightsError: MONAI's UNETR cannot express the segmenter; the message says why.
        UsageError: another ``proj_type``.
    """
    check_proj_type(proj_type)
    backbone, decoder, out_indices = segmenter.backbone, segmenter.decoder, tuple(segmenter.out_indices)
    reasons = {
        "the decoder is not a UNETRDecoder": not isinstance(decoder, UNETRDecoder),
        "the decoder has image_levels > 1": len(getattr(decoder, "image_downs", [])) > 0,
        "the decoder has heads for deep supervision": len(getattr(decoder, "coarse_heads", [])) > 0,
        f"patch_size={backbone.patch_embed.patch_size}, expected 16": backbone.patch_embed.patch_size != (16,) * 3,
        f"out_indices={out_indices}, expected {MONAI_TAPS}": out_indices != MONAI_TAPS,
        f"{len(backbone.blocks)} blocks, expected 12": len(backbone.blocks) != 12,
        "it has prefix tokens": backbone.num_prefix_tokens > 0,
        "its positions are not learned": not isinstance(backbone.pos_embed, nn.Parameter),
    }
    return there_and_back(
        segmenter,
        "MONAI's UNETR cannot express this segmenter",
        reasons,
        lambda: _build_unetr(segmenter, proj_type),
        from_monai_unetr,
        ignored="(head_drop)",
    )


def _build_unetr(segmenter: TokenSegmenter, proj_type: str) -> UNETR:
    backbone, decoder = segmenter.backbone, segmenter.decoder
    weight = backbone.patch_embed.proj.weight
    unetr = UNETR(
        in_channels=backbone.in_chans,
        out_channels=decoder.head.conv.conv.out_channels,
        img_size=backbone.patch_embed.img_size,
        feature_size=decoder.head.conv.conv.in_channels,
        hidden_size=backbone.embed_dim,
        mlp_dim=backbone.blocks[0].mlp.fc1.out_features,
        num_heads=backbone.num_heads,
        proj_type=proj_type,
        dropout_rate=backbone.pos_drop.p,
        qkv_bias=backbone.blocks[0].attn.qkv.bias is not None,
        **_decoder_options(decoder.image_branch, decoder.tap_branches[-1]),
    ).to(weight.device, weight.dtype)
    state = {_rename(key, False): value for key, value in segmenter.state_dict().items()}
    if proj_type == "perceptron":
        state[f"{_LINEAR}weight"] = kernel_to_linear(state.pop(f"{_KERNEL}weight"))
        state[f"{_LINEAR}bias"] = state.pop(f"{_KERNEL}bias")
    unused = {k: v for k, v in unetr.state_dict().items() if STALE.match(k)}
    unetr.load_state_dict({**unused, **state})
    return unetr
