"""timm's 2D Vision Transformers to VisionTransformer3D: built alike, weights inflated, every key accounted for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.checkpoints import read_checkpoint, refuse_differences
from monai_vit3d.networks.load_report import Inflated, LoadReport
from monai_vit3d.networks.meta_init import blank_network, fill
from monai_vit3d.weights.backbone import HEAD
from monai_vit3d.weights.inflate import check_how

from .building import options_checked
from .shapes import KERNEL, POS
from .timm2d_filter import assumed_grid, checkpoint_filter_fn
from .timm2d_names import taken_out, under_timms_names
from .timm2d_options import refuse_other_layers, timm_options

logger = logging.getLogger(__name__)

TIMM_MODULES = ("vision_transformer", "deit", "eva")  # of timm, where VisionTransformer and Eva are built by name
_HOW = ("kernel", "positions", "axis", "grid", "strict", "take")  # of weights, not of the network
_ADVICE = "Name the timm model that the weights are of, or pass strict=False to load what fits."


def load_timm2d(
    network: VisionTransformer3D,
    state: Mapping[str, Tensor],
    *,
    name: str = "state_dict",
    new_head: bool = False,
    strict: bool = True,
    owned: bool = False,
    advice: str = _ADVICE,
    **how: Any,
) -> LoadReport:
    """Load the state dict of a timm VisionTransformer into a 3D network, all of it or nothing.

    Args:
        network: built with :func:`timm_options`, or alike; it keeps its device and dtype.
        state: under timm's own keys.
        name: where it came from, for messages.
        new_head: the network has a head or a pooling of its own: those keys of the state that do not fit it are
            left out, those that it lacks stay as they are.
        strict: refuse keys and shapes that do not fit; else they are only reported.
        owned: nobody else has the tensors: a network on the meta device takes them for its own.
        advice: what to do about those that do not fit.
        how: ``kernel``, ``positions``, ``axis``, ``grid``, as for :func:`checkpoint_filter_fn`.

    Returns:
        What became of each key.

    Raises:
        WeightsError: keys or shapes differ, and ``strict``; the network is unchanged then.
        UsageError: an unknown way to inflate.
    """
    try:
        fitted = checkpoint_filter_fn(state, network, **how)
    except (IndexError, RuntimeError, WeightsError) as error:  # also of tensors with other axes than theirs
        raise WeightsError(f"{name}: {error}") from error
    own = network.state_dict()
    fits = [key for key in own if key in fitted and fitted[key].shape == own[key].shape]
    if strict:
        spare = {*fits, *(key for key in (*own, *fitted) if new_head and key.startswith(HEAD))}
        sides = [{key: value for key, value in side.items() if key not in spare} for side in (own, fitted)]
        refuse_differences(sides[0], sides[1], name, type(network).__name__, advice)
    come = {key: fitted[key] for key in fits}
    fill(network, come, fitted[KERNEL].device, owned=owned)
    changed = {
        key: f"{tuple(state[key].shape)} to {tuple(fitted[key].shape)}" for key in fits if fitted[key] is not state[key]
    }
    return LoadReport(
        loaded=tuple(key for key in fits if key not in changed),
        converted=changed,
        missing=tuple(key for key in own if key not in fits),
        unexpected=tuple(key for key in fitted if key not in fits),
        assumed=tuple(filter(None, [assumed_grid(state, network, **how)])),
    )


def from_timm2d(
    model: nn.Module,
    img_size: int | Sequence[int],
    patch_size: int | Sequence[int],
    *,
    state: Mapping[str, Any] | None = None,
    name: str = "state_dict",
    kernel: str = "mean",
    positions: str = "repeat",
    axis: int = 2,
    grid: Sequence[int] | None = None,
    strict: bool = True,
    take: str = "teacher",
    **options: Any,
) -> Inflated:
    """Build the 3D network of a timm model's architecture, with its weights inflated.

    A volume that is constant along the slice axis gives the 2D logits if there is one token along it. With k tokens
    along it too, if there are no prefix tokens: k equal patch tokens outweigh a class or register token in the
    attention, in which ``log(k)`` on its columns of ``attn_mask`` brings the 2D tokens back, and the 2D logits unless
    an attentive pooling sees such tokens (``pool_include_prefix``).

    The network is built without memory and given the tensors. Random numbers are drawn only for what does not come,
    such as a new head.

    Args:
        model: timm's VisionTransformer or Eva; may be on the meta device if ``state`` has the weights.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch size in ``(H, W, D)``.
        state: other weights for it: under timm's keys, or as their authors published them where timm can read that
            (DINOv2, DINOv3, OpenAI's CLIP, OpenCLIP, BEiT-3, I-JEPA, AIMv2, DeiT-3); None takes the model's own.
        name: where ``state`` came from, for messages.
        kernel: how the kernel is inflated, ``"mean"``, ``"center"`` or ``"trilinear"``.
        positions: how positions are inflated, ``"repeat"`` or ``"factored"``.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``.
        grid: patches along the image's axes that the positions were learned on, if neither the model's nor a square.
        strict: refuse keys, shapes and layers that differ.
        take: which of several networks in ``state``, as for :func:`~monai_vit3d.weights.identify`.
        options: keywords of :class:`VisionTransformer3D` that override the model's: ``in_chans``, ``num_classes``,
            ``global_pool``, drop rates, and so on.

    Returns:
        The network, in the model's mode, on the weights' device and at least in float32, where ``device`` and
        ``dtype`` say nothing else; and what became of each key. The tensors are its own: training it changes neither
        ``model`` nor ``state``.

    Raises:
        WeightsError: VisionTransformer3D cannot host the model, or the weights do not fit it.
        UsageError: an unknown way to inflate, or options that no network can be built with.
    """
    how = {"kernel": kernel, "positions": positions, "axis": axis, "grid": grid, "strict": strict, "take": take}
    state = model.state_dict() if state is None else state
    return _inflated(model, img_size, patch_size, state, name, False, how, options)


def _inflated(
    model: nn.Module,
    img_size: int | Sequence[int],
    patch_size: int | Sequence[int],
    state: Mapping[str, Any],
    name: str,
    owned: bool,
    how: dict[str, Any],
    options: dict[str, Any],
) -> Inflated:
    """Build the network of :func:`from_timm2d`; ``owned`` tensors become its own where they need no change."""
    how = {"axis": 2, "grid": None, "strict": True, **how}
    state, beside = taken_out(state, name, how.pop("take", "teacher"))
    keywords = timm_options(model, how["axis"])
    place = {key: options.pop(key, None) for key in ("device", "dtype")}
    make = partial(VisionTransformer3D, img_size, patch_size, **{**keywords, **options})
    with options_checked(name):
        network = blank_network(make) if how["strict"] else make()
    if how["strict"]:
        refuse_other_layers(model, network, how["axis"])
    tensors, origins, dropped = under_timms_names(state, model, name, how["strict"])
    _refuse_empty(tensors, name)
    grid2d = tuple(model.patch_embed.grid_size)
    prefix = 0 if model.no_embed_class else int(model.num_prefix_tokens)
    if how["grid"] is None and POS in tensors and tensors[POS].shape[1] == prefix + prod(grid2d):
        how["grid"] = grid2d
    weight = tensors[KERNEL]
    network.to(place["dtype"] or torch.promote_types(weight.dtype, torch.float32)).train(model.training)
    own_head = any(options.get(key, keywords[key]) != keywords[key] for key in ("num_classes", "global_pool"))
    report = load_timm2d(network, tensors, name=name, new_head=own_head, owned=owned, **how)
    network.to(place["device"] or weight.device)
    report = report.with_origins(origins, (*dropped, *beside))
    logger.info("%s: %s", name, report.summary)
    logger.debug("%s: %s", name, report)
    return Inflated(network, report)


def create_timm2d(
    name: str,
    img_size: int | Sequence[int],
    patch_size: int | Sequence[int],
    *,
    pretrained: bool | Mapping[str, Any] | str | Path | None = False,
    **options: Any,
) -> Inflated:
    """Build a 3D network from the name of one of timm's 2D Vision Transformers, with its weights inflated.

    Args:
        name: timm's, as ``"vit_base_patch14_reg4_dinov2.lvd142m"``; a leading ``"hf-hub:timm/"`` is left out.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch size in ``(H, W, D)``.
        pretrained: True takes timm's weights, downloaded if they are not in its cache; a state dict or a file are
            taken instead, of a checkpoint the network that ``take`` says; False or None leaves the network as it was
            initialised.
        options: as for :func:`from_timm2d`.

    Returns:
        The network, and what became of each key.

    Raises:
        WeightsError: no such Vision Transformer in timm, or as :func:`from_timm2d`.
        UsageError: an unknown way to inflate, or options that no network can be built with.
    """
    name = timms_name(name)
    if not timm.models.is_model_in_modules(name.split(".")[0], TIMM_MODULES):
        raise WeightsError(f"{name!r} is none of timm's Vision Transformers; see timm.list_models('*vit*').")
    how = {key: options.pop(key) for key in _HOW if key in options}
    if pretrained is True:
        model = timm.create_model(name, pretrained=True)
        return _inflated(model, img_size, patch_size, model.state_dict(), name, True, how, options)
    model = _without_weights(name)
    if isinstance(pretrained, Mapping):
        return from_timm2d(model, img_size, patch_size, state=pretrained, **how, **options)
    if pretrained is not False and pretrained is not None:
        state = read_checkpoint(pretrained)
        return _inflated(model, img_size, patch_size, state, str(pretrained), True, how, options)
    check_how(**{key: how[key] for key in ("kernel", "positions", "axis") if key in how})
    keywords = timm_options(model, how.get("axis", 2))
    with options_checked(name):
        network = VisionTransformer3D(img_size, patch_size, **{**keywords, **options})
    return Inflated(network, LoadReport(missing=tuple(network.state_dict())))


def timms_name(name: str) -> str:
    """Return a model's name in timm: its name on the Hugging Face hub without ``timm/``."""
    return name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")


def _without_weights(name: str) -> nn.Module:
    """Build timm's model on the meta device, for its architecture only."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, device="meta")
    except RuntimeError as error:  # a tag that timm does not know
        raise WeightsError(f"{name!r}: {error} See timm.list_pretrained({name.split('.')[0]!r}).") from error
    return model


def _refuse_empty(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights without a patch kernel, or without values."""
    if KERNEL not in tensors:
        raise WeightsError(f"{name}: no {KERNEL}, nor any layout that timm can read; expected weights of a ViT.")
    if any(value.is_meta for value in tensors.values()):
        raise WeightsError(f"{name}: tensors on the meta device have no values. Give the weights as state=.")
