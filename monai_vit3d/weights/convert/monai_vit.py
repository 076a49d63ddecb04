"""MONAI's ViT to VisionTransformer3D and back; the encoders of its ViTAutoEnc and MaskedAutoEncoderViT, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from math import prod
from typing import TypeVar

import torch
from monai.networks.nets import MaskedAutoEncoderViT, ViT, ViTAutoEnc
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers.patch_embed import to_3tuple
from monai_vit3d.networks import VisionTransformer3D

from .families import FAMILIES, family_of
from .monai_keys import (
    LINEAR,
    STALE,
    kernel_to_linear,
    to_monai_key,
)
from .shapes import even_side

M = TypeVar("M", bound=nn.Module)


def from_monai_vit(
    vit: ViT | ViTAutoEnc | MaskedAutoEncoderViT, img_size: int | Sequence[int] | None = None
) -> VisionTransformer3D:
    """Convert a MONAI ViT to the backbone that computes the same, with its weights.

    With ``classification=True`` it returns the logits (a head with Tanh becomes ``Sequential(Linear, Tanh)``), else
    the normed tokens; of the other two networks it is the encoder, the masked one with a class token and unmasked.
    In training, MONAI drops no part of the class token at the positions (``dropout_rate``); here it may be.

    Args:
        vit: a 3D network with either patch embedding and any positions, which become learned ones; those that MONAI
            does not train (``"sincos"``) are not trained here.
        img_size: input size in ``(H, W, D)``, which MONAI's ViT does not keep; None takes a cube. Not asked of the
            other two.

    Returns:
        A backbone on the same device, in the same dtype and mode.

    Raises:
        WeightsError: a network in 2D, or with another layout.
        UsageError: no ``img_size`` where the patches are no cube, or one that they do not fit.
    """
    state, embedding, block = vit.state_dict(), vit.patch_embedding, vit.blocks[0]
    family = FAMILIES[family_of(state)]
    options = family.options(state, _patch_of(embedding.patch_embeddings))[0]
    patch, dropout = options["patch_size"], block.mlp.drop1.p
    options["num_heads"] = block.attn.num_heads
    options["img_size"] = _size(getattr(vit, "img_size", img_size), patch, int(embedding.n_patches))
    options |= {"pos_drop_rate": dropout, "proj_drop_rate": dropout, "attn_drop_rate": dropout}
    positions = embedding.position_embeddings
    net = VisionTransformer3D(**options).to(positions.device, positions.dtype)
    tensors = family.to_our_keys(family.encoder(state)[0], patch)[0]
    add_tanh(net, tensors)
    net.load_state_dict(tensors)
    net.pos_embed.requires_grad_(positions.requires_grad)
    return net.train(vit.training)


def add_tanh(network: VisionTransformer3D, state: dict[str, Tensor]) -> None:
    """Give a network the head of MONAI's ``post_activation="Tanh"``, if a state dict under our keys has one."""
    if "head.0.weight" in state:
        network.head = nn.Sequential(network.head, nn.Tanh())


def _patch_of(layer: nn.Module) -> tuple[int, int, int] | None:
    """Return the patch that einops' Rearrange before a linear layer was made for."""
    lengths = getattr(layer[0], "axes_lengths", {}) if isinstance(layer, nn.Sequential) else {}
    return (lengths["p1"], lengths["p2"], lengths["p3"]) if "p3" in lengths else None


def _size(img_size: int | Sequence[int] | None, patch: tuple[int, int, int], patches: int) -> tuple[int, int, int]:
    """Return the input size that the patches fill; MONAI leaves out what does not fill one."""
    side = even_side(patches)
    if img_size is None and not side:
        raise UsageError(
            f"img_size=None, but {patches} patches are no cube. Pass the img_size that the ViT was built with."
        )
    grid = (side,) * 3 if img_size is None else tuple(i // p for i, p in zip(to_3tuple(img_size, "img_size"), patch))
    if prod(grid) != patches:
        raise UsageError(
            f"img_size={img_size} has {prod(grid)} patches of {patch}, but the ViT has {patches}. Pass the img_size "
            "that it was built with."
        )
    return grid[0] * patch[0], grid[1] * patch[1], grid[2] * patch[2]


def check_proj_type(proj_type: str) -> None:
    """Refuse what is no patch embedding of MONAI's.

    Raises:
        UsageError: neither ``"conv"`` nor ``"perceptron"``.
    """
    if proj_type not in ("conv", "perceptron"):
        raise UsageError(f"proj_type={proj_type!r}; expected 'conv' or 'perceptron'.")


def to_monai_vit(backbone: VisionTransformer3D, proj_type: str = "conv") -> ViT:
    """Convert a backbone to the MONAI ViT that computes the same, with its weights.

    Its output is a pair: the logits, or the normed tokens, and the blocks' outputs.

    Args:
        backbone: with a class token and a head (``classification=True``), or with neither and ``global_pool=""``; no
            register tokens; any positions. Fixed ones are not trained there either.
        proj_type: MONAI's kind of patch embedding, ``"conv"`` or ``"perceptron"``; they compute the same.

    Returns:
        A ViT on the same device, in the same dtype and mode.

    Raises:
        WeightsError: MONAI's ViT cannot express the backbone; the message says why.
        UsageError: another ``proj_type``.
    """
    check_proj_type(proj_type)
    classifies = backbone.has_class_token and backbone.num_classes > 0 and backbone.global_pool == "cls_token"
    tokens = not backbone.has_class_token and backbone.num_classes == 0 and backbone.global_pool == ""
    reasons = {
        "it has register tokens": backbone.num_reg_tokens > 0,
        "it has neither a class token and a head on it, nor global_pool='' and no class token": not (
            classifies or tokens
        ),
        "it has rotary positions": backbone.rope is not None,
        "it drops patches in training": not isinstance(backbone.patch_drop, nn.Identity),
        f"embed_dim={backbone.embed_dim} is no multiple of 6, as MONAI's sin-cos positions need": (
            backbone.pos_embed_type == "sincos" and backbone.embed_dim % 6 > 0
        ),
    }
    return there_and_back(
        backbone,
        "MONAI's ViT cannot express this backbone",
        reasons,
        lambda: _build(backbone, proj_type, classifies),
        lambda vit: from_monai_vit(vit, backbone.patch_embed.img_size),
    )


def there_and_back(
    network: nn.Module,
    refusal: str,
    reasons: Mapping[str, bool],
    there: Callable[[], M],
    back: Callable[[M], nn.Module],
    ignored: str | None = None,
) -> M:
    """Return MONAI's network for ours, after a check that converting it back gives the same layers.

    Args:
        network: ours.
        refusal: the beginning of the message.
        reasons: what MONAI has no place for, and whether the network has it.
        there: builds MONAI's network.
        back: makes that ours again.
        ignored: lines of the networks' text with this in them are not compared.

    Returns:
        MONAI's network, in the mode of ours.

    Raises:
        WeightsError: a reason holds, the network cannot be built, or a layer differs; the message names the first.
    """
    why = [reason for reason, holds in reasons.items() if holds]
    if why:
        raise WeightsError(f"{refusal}: {'; '.join(why)}.")
    try:
        theirs = there()
        again = back(theirs)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{refusal}: {error}") from error
    for one, other in zip_longest(*(repr(net).splitlines() for net in (network, again)), fillvalue="nothing"):
        if one != other and (ignored is None or ignored not in one):
            raise WeightsError(f"{refusal}: it has {one.strip()} where MONAI has {other.strip()}.")
    return theirs.train(network.training)


def _build(backbone: VisionTransformer3D, proj_type: str, classifies: bool) -> ViT:
    weight, block = backbone.patch_embed.proj.weight, backbone.blocks[0]
    positions = {"learned": "learnable", "sincos": "sincos", "none": "none"}[backbone.pos_embed_type]
    vit = ViT(
        in_channels=backbone.in_chans,
        img_size=backbone.patch_embed.img_size,
        patch_size=backbone.patch_embed.patch_size,
        hidden_size=backbone.embed_dim,
        mlp_dim=block.mlp.fc1.out_features,
        num_layers=len(backbone.blocks),
        num_heads=backbone.num_heads,
        proj_type=proj_type,
        pos_embed_type=positions,
        classification=classifies,
        num_classes=backbone.num_classes,
        dropout_rate=backbone.pos_drop.p,
        post_activation="Tanh" if isinstance(backbone.head, nn.Sequential) else "none",
        qkv_bias=block.attn.qkv.bias is not None,
    ).to(weight.device, weight.dtype)
    state = {to_monai_key(key): value for key, value in _with_positions(backbone).items()}
    if proj_type == "perceptron":
        bias = state.pop("patch_embedding.patch_embeddings.bias")
        state[LINEAR] = kernel_to_linear(state.pop("patch_embedding.patch_embeddings.weight"))
        state[LINEAR.replace("weight", "bias")] = bias
    unused = {key: value for key, value in vit.state_dict().items() if STALE.match(key)}
    vit.load_state_dict({**unused, **state})
    vit.patch_embedding.position_embeddings.requires_grad_(
        isinstance(backbone.pos_embed, nn.Parameter) and backbone.pos_embed.requires_grad
    )
    return vit


def _with_positions(backbone: VisionTransformer3D) -> dict[str, Tensor]:
    """Return the state dict with positions for the patches alone, whatever they were; MONAI's class token has none."""
    state = dict(backbone.state_dict())
    pos = backbone.pos_embed
    if pos is None:
        pos = torch.zeros(1, backbone.num_patches, backbone.embed_dim)
    prefix = pos.shape[1] - backbone.num_patches
    if prefix:
        state["cls_token"] = state["cls_token"] + pos.detach()[:, :1]
    return {**state, "pos_embed": pos.detach()[:, prefix:]}
