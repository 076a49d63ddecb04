"""Save a backbone as an encoder's file, and load one from any file that holds a backbone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers import ConvStem3D, PatchEmbed3D, ResidualStem3D, SkipStem3D, resample_patch_kernel
from monai_vit3d.layers.pos_embed import GridShape, resample_pos_embed, sincos_pos_embed
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.checkpoints import (
    as_state_dict,
    key_names,
    read_with_metadata,
    refuse_differences,
    without_wrappers,
    write_safetensors,
)
from monai_vit3d.networks.lora import merged_lora
from monai_vit3d.networks.meta_init import fill
from monai_vit3d.networks.model_args import RECORD, args_in_state, model_args
from monai_vit3d.networks.recorded import args_in, checked_args
from monai_vit3d.networks.weights_licence import LICENCE_KEY, licence_metadata, set_weights_licence
from monai_vit3d.networks.wrappers import unwrap_network

from .inflate import adapt_channels

NetworkOrState = TypeVar("NetworkOrState")
logger = logging.getLogger(__name__)

PREFIX = "backbone."
HEAD = ("head.", "attn_pool.")
PROJECTION = "patch_embed.proj.weight"
# what a file has of a patch embedding's layers, and its class; the first that fits
_STEMS: tuple[tuple[str, type[PatchEmbed3D]], ...] = (
    ("patch_embed.stem.", ConvStem3D),
    ("patch_embed.skips.", SkipStem3D),
    ("patch_embed.stages.", ResidualStem3D),
)
# a name for people, and where a class is from; the grid, which positions follow; what the shapes show, and rounded;
# the head, which is left out; what leaves the weights' meaning alone; the channels, to which the kernel is adapted
_MAY_DIFFER = (
    *("class", "foreign", "img_size", "grid_size", "mlp_ratio", "init_values", "qkv_bias", "proj_bias", "num_classes"),
    *("global_pool", "pool_include_prefix", "final_norm", "fc_norm", "dynamic_img_size", "dynamic_img_pad"),
    *("pos_trained", "in_chans", "tokens"),
)


def save_backbone(backbone: VisionTransformer3D, path: str | Path) -> None:
    """Write a backbone without its head as safetensors, all of it or nothing; the same weights give the same bytes.

    The header's metadata has the ``model_args`` (JSON, as :func:`model_args`) and the ``sha256`` of the tensors'
    bytes, and the ``license`` that the weights came with; any reader of safetensors reads the file. Adapters are
    written merged; the network keeps them.

    Args:
        backbone: the network, wrapped or not; its parameters keep their dtype.
        path: the file, ``.safetensors``; its folder is made if it is not there.

    Raises:
        UsageError: another network.
    """
    backbone = unwrap_network(backbone)
    if not isinstance(backbone, VisionTransformer3D):
        raise UsageError(
            f"backbone is a {type(backbone).__name__}; expected a VisionTransformer3D. Give network.backbone."
        )
    backbone = merged_lora(backbone)
    state = {key: value for key, value in backbone.state_dict().items() if not key.startswith(HEAD)}
    args = {key: value for key, value in model_args(backbone).items() if key != "num_classes"}
    write_safetensors(state, {RECORD: json.dumps(args, sort_keys=True), **licence_metadata(backbone)}, path)


def load_backbone(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a backbone into ``network.backbone``, or into ``network`` where that is one, all of it or nothing.

    A head of the network stays, a head of the file is left out. Learned positions of another grid are resampled
    trilinearly if the file says its grid, as those of :func:`save_backbone` do; where the file says sin-cos positions
    and the network learns its own, they start from the table, which computes the same. Such a file is also asked for
    what no shape shows: heads, layers. For other files that is the caller's care. A patch kernel of other channels, or
    (but for a convolutional stem) of another patch size, is adapted as :meth:`VisionTransformer3D.from_pretrained` does
    it. The log says what was adapted.

    A network keeps its device and dtype. A backbone on the meta device comes to the CPU: the tensors that were read
    become its own, so that the weights are in memory once, and its head starts as ``init_weights`` does it.

    Args:
        network: a :class:`VisionTransformer3D`, or a network with a ``backbone``, as :class:`TokenSegmenter` and
            :class:`TokenClassifier`; its decoder or head stays as it is.
        path: a file of :func:`save_backbone`, the state dict of any network that has a ``backbone`` of the same
            options, or that of a backbone alone; by ``torch.save`` or as safetensors.

    Returns:
        ``network``.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors, holds no backbone, or one of another
            architecture; the message names what differs. The network is unchanged then.
        UsageError: a network without a backbone.
    """
    backbone_part(network)  # refuses a network without one before anything is read
    read, metadata = read_with_metadata(path)
    state = as_state_dict(read, path)
    came = checked_args(args_in_state(state, PREFIX) or args_in_state(state), path) or args_in(metadata, path)
    load_backbone_state(network, state, came, path)
    set_weights_licence(backbone_part(network), metadata.get(LICENCE_KEY))
    return network


def load_backbone_state(
    network: nn.Module, state: dict[str, Tensor], came: dict[str, Any], path: str | Path
) -> nn.Module:
    """Load a backbone that was read already, as :func:`load_backbone` does.

    Args:
        network: as there.
        state: the tensors of a backbone, or of a network with one; they become the network's own.
        came: the backbone's arguments that the file records; empty if it has none.
        path: where they are from, for messages.

    Returns:
        ``network``.

    Raises:
        WeightsError: as there.
        UsageError: a network without a backbone.
    """
    backbone = backbone_part(network)
    needed = model_args(backbone) if isinstance(backbone, VisionTransformer3D) else {}
    _refuse_architecture(came, needed, path)
    part, adapted = _fit_kernel(backbone_in(state, path), backbone)
    state, resampled = _fit_positions(part, came, backbone, needed, path)
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith(HEAD)}
    refuse_differences(own, state, path, type(backbone).__name__, _advice(own, state))
    fill(backbone, state, "cpu", owned=True)
    logger.info("%s: loaded %d tensors of a backbone%s%s", path, len(state), adapted, resampled)
    return network


def embed_layer_of(path: str | Path) -> type[PatchEmbed3D]:
    """Return the patch embedding that the backbone in a file was built with, for a network that is to start from it.

    Args:
        path: as for :func:`load_backbone`. Of safetensors the header alone is read; :func:`load_backbone` verifies it.

    Returns:
        The class of the stem that the file has the tensors of; else :class:`PatchEmbed3D`.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors, or holds no backbone.
    """
    names = backbone_in(dict.fromkeys(key_names(path)), path)
    return next((kind for sign, kind in _STEMS if any(key.startswith(sign) for key in names)), PatchEmbed3D)


def backbone_part(network: nn.Module) -> nn.Module:
    """Return the backbone of a network, or a backbone itself, without wrappers.

    Raises:
        UsageError: a network without one.
    """
    network = unwrap_network(network)
    backbone = network if isinstance(network, VisionTransformer3D) else getattr(network, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UsageError(
            f"network is a {type(network).__name__} without a backbone; expected a VisionTransformer3D, or a network "
            "that has one as its attribute backbone."
        )
    return backbone


def backbone_in(state: dict[str, NetworkOrState], path: str | Path) -> dict[str, NetworkOrState]:
    """Return the backbone's tensors under their own names, without a head.

    Raises:
        WeightsError: there are none.
    """
    state = without_wrappers(state)
    part = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    if not part and any(key.startswith("patch_embed.") for key in state):
        part = state
    if not part:
        there = next((key[: key.index("patch_embed.")] for key in state if ".patch_embed." in key), "")
        advice = (
            f" One lies under {there!r}: backbone_from(path, take={there.rstrip('.')!r}) reads it." if there else ""
        )
        raise WeightsError(
            f"{path}: no entry begins with {PREFIX!r} or 'patch_embed.'; expected weights of a network with a "
            f"backbone, or of a backbone alone.{advice}"
        )
    return {key: value for key, value in part.items() if not key.startswith(HEAD)}


def architecture_differences(came: Mapping[str, Any], needed: Mapping[str, Any]) -> list[str]:
    """List the arguments in which two backbones compute something else; grid, channels and patch are fitted.

    Args:
        came: arguments of the backbone whose weights are loaded; empty if they are not known.
        needed: those of the backbone that they are loaded into.
    """
    # older files say that a parallel block has no attention and no MLP
    args = {key for key in came if key not in _MAY_DIFFER and came[key] != "NoneType"}
    unlike = [key for key in needed if key in args and came[key] != needed[key]]
    if not keeps_patch(came) and not keeps_patch(needed):
        unlike = [key for key in unlike if key != "patch_size"]
    if learned_from_table(came, needed):
        unlike = [key for key in unlike if key not in ("pos_embed", "no_embed_class")]
    return unlike


def keeps_patch(args: Mapping[str, Any]) -> bool:
    """Return whether a backbone has a stem, whose layers are those of one patch size."""
    return args.get("embed_layer") in {kind.__name__ for _, kind in _STEMS}


def _refuse_architecture(came: dict[str, Any], needed: dict[str, Any], path: str | Path) -> None:
    unlike = architecture_differences(came, needed)
    if unlike:
        both = "; ".join(f"{key}={came[key]!r} came, expected {needed[key]!r}" for key in unlike)
        options = ", ".join(f"{key}={came[key]!r}" for key in unlike)
        raise WeightsError(
            f"{path}: a backbone of another architecture: {both}. Build the network with {options}, or name weights "
            "that fit it."
        )


def _fit_kernel(state: dict[str, Tensor], backbone: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Fit the first convolution's kernel to the backbone's channels and patch; also return what was done."""
    fitted, done = dict(state), ""
    embed = getattr(backbone, "patch_embed", None) if isinstance(backbone, VisionTransformer3D) else None
    names = () if embed is None else getattr(embed, "image_kernels", ("proj.weight",))
    for key in (f"patch_embed.{name}" for name in names):
        kernel, own = state.get(key), backbone.state_dict().get(key)
        if kernel is None or own is None or own.dim() != 5 or kernel.dim() != 5:
            continue
        if kernel.shape[1] != own.shape[1]:
            done += f", patch kernel adapted from {kernel.shape[1]} to {own.shape[1]} channels"
            kernel = adapt_channels(kernel, own.shape[1])
        if kernel.shape[2:] != own.shape[2:] and key == PROJECTION:
            done += f", patch kernel resampled from {tuple(kernel.shape[2:])} to {tuple(own.shape[2:])}"
            kernel = resample_patch_kernel(kernel, own.shape[2:])
        fitted[key] = kernel
    return fitted, done


def learned_from_table(came: Mapping[str, Any], needed: Mapping[str, Any]) -> bool:
    """Return whether the network learns positions where the file's are a sin-cos table, from which they may start."""
    return came.get("pos_embed") == "sincos" and needed.get("pos_embed") == "learned"


def _fit_positions(
    state: dict[str, Tensor], came: dict[str, Any], backbone: nn.Module, needed: dict[str, Any], path: str | Path
) -> tuple[dict[str, Tensor], str]:
    """Fit learned positions to the backbone's grid; also return what was done, for the log."""
    if not isinstance(backbone, VisionTransformer3D):
        return state, ""
    if learned_from_table(came, needed):
        table = sincos_pos_embed(backbone.grid_size, int(backbone.embed_dim))
        prefix = 0 if backbone.no_embed_class else int(backbone.num_prefix_tokens)
        return {**state, "pos_embed": nn.functional.pad(table, [0, 0, prefix, 0])}, ", positions started from sin-cos"
    if "grid_size" not in came or "pos_embed" not in state:
        return state, ""
    old: GridShape = tuple(came["grid_size"])
    new, pos, own = backbone.grid_size, state["pos_embed"], backbone.pos_embed
    prefix = 0 if own is None else own.shape[1] - backbone.num_patches
    if pos.dim() != 3 or pos.shape[1] != prefix + prod(old):
        raise WeightsError(
            f"{path}: pos_embed is {tuple(pos.shape)}, but the header's grid_size {old} has {prod(old)} patches, and "
            f"{prefix} prefix tokens have positions. Save the file anew with save_backbone."
        )
    if old == new:
        return state, ""
    positions = resample_pos_embed(pos, old, new, prefix)
    return {**state, "pos_embed": positions}, f", positions resampled from grid {old} to {new}"


def _advice(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """Advise on a file that does not record its grid, where only the positions differ."""
    rests = [{key: value.shape for key, value in state.items() if key != "pos_embed"} for state in (own, tensors)]
    if rests[0] == rests[1] and "pos_embed" in own and "pos_embed" not in tensors:
        return (
            "The file has no learned positions and does not say which it had: load the .safetensors that "
            "save_backbone wrote of these weights."
        )
    if rests[0] != rests[1] or not ("pos_embed" in own and "pos_embed" in tensors):
        return ""
    return (
        "The file does not say its patch grid, so its positions cannot be resampled: load it into a backbone built "
        "with its own img_size, write that with save_backbone, and load what that wrote."
    )
