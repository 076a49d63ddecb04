"""timm's 2D Vision Transformers to VisionTransformer3D: built alike, weights inflated, every key accounted for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ...data.errors import WeightsError
from ...layers import resample_pos_embed
from ...networks import VisionTransformer3D
from ..backbone import HEAD
from ..files import read_checkpoint, refuse_differences
from ..inflate import fit_kernel, inflate_positions
from ..report import LoadReport
from .timm2d_names import under_timms_names
from .timm2d_options import refuse_other_layers, timm_options

logger = logging.getLogger(__name__)

KERNEL, POS = "patch_embed.proj.weight", "pos_embed"
_MODULES = ("vision_transformer", "deit")  # of timm, where its class VisionTransformer is built by name
_HOW = ("kernel", "positions", "axis", "grid", "strict")  # of weights, not of the network
_ADVICE = "Name the timm model that the weights are of, or pass strict=False to load what fits."


class Inflated(NamedTuple):
    """A 3D network, and what became of each tensor."""

    network: VisionTransformer3D
    report: LoadReport


def load_timm2d(
    network: VisionTransformer3D,
    state: Mapping[str, Tensor],
    *,
    name: str = "state_dict",
    new_head: bool = False,
    strict: bool = True,
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
        how: ``kernel``, ``positions``, ``axis``, ``grid``, as for :func:`checkpoint_filter_fn`.

    Returns:
        What became of each key.

    Raises:
        WeightsError: keys or shapes differ, and ``strict``; the network is unchanged then.
        UsageError: an unknown way to inflate.
    """
    found = checkpoint_filter_fn(state, network, **how)
    own = network.state_dict()
    fits = [key for key in own if key in found and found[key].shape == own[key].shape]
    if strict:
        spare = {*fits, *(key for key in (*own, *found) if new_head and key.startswith(HEAD))}
        sides = [{key: value for key, value in side.items() if key not in spare} for side in (own, found)]
        refuse_differences(sides[0], sides[1], name, type(network).__name__, _ADVICE)
    network.load_state_dict({key: found[key] for key in fits}, strict=False)
    changed = {
        key: f"{tuple(state[key].shape)} to {tuple(found[key].shape)}" for key in fits if found[key] is not state[key]
    }
    return LoadReport(
        loaded=tuple(key for key in fits if key not in changed),
        converted=changed,
        initialised=tuple(key for key in own if key not in fits),
        unused=tuple(key for key in found if key not in fits),
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
    **options: Any,
) -> Inflated:
    """The 3D network that has a timm model's architecture, and its weights inflated.

    A volume that is constant along the slice axis gives the 2D logits if there is one token along it; with more
    tokens too, if there are no prefix tokens, whose share of the attention shrinks otherwise.

    Args:
        model: timm's VisionTransformer; may be on the meta device if ``state`` has the weights.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch size in ``(H, W, D)``.
        state: other weights for it: under timm's keys, or as their authors published them where timm can read that
            (DINOv2, OpenAI's CLIP, OpenCLIP, BEiT-3, I-JEPA, AIM, RADIO, DeiT-3); None takes the model's own.
        name: where ``state`` came from, for messages.
        kernel: how the kernel is inflated, ``"mean"``, ``"center"`` or ``"trilinear"``.
        positions: how positions are inflated, ``"repeat"`` or ``"factored"``.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``.
        grid: patches along the image's axes that the positions were learned on, if neither the model's nor a square.
        strict: refuse keys, shapes and layers that differ.
        options: keywords of :class:`VisionTransformer3D` that override the model's: ``in_chans``, ``num_classes``,
            ``global_pool``, drop rates, and so on.

    Returns:
        The network, at least in float32, in the model's mode; and what became of each key.

    Raises:
        WeightsError: VisionTransformer3D cannot host the model, or the weights do not fit it.
        UsageError: an unknown way to inflate.
    """
    wanted = timm_options(model)
    network = VisionTransformer3D(img_size, patch_size, **{**wanted, **options})
    if strict:
        refuse_other_layers(model, network)
    tensors, origins, dropped = under_timms_names(model.state_dict() if state is None else state, model, name)
    _refuse_empty(tensors, name)
    grid2d = tuple(model.patch_embed.grid_size)
    prefix = 0 if model.no_embed_class else int(model.num_prefix_tokens)
    if grid is None and POS in tensors and tensors[POS].shape[1] == prefix + prod(grid2d):
        grid = grid2d
    weight = tensors[KERNEL]
    network.to(weight.device, torch.promote_types(weight.dtype, torch.float32)).train(model.training)
    own_head = any(options.get(key, wanted[key]) != wanted[key] for key in ("num_classes", "global_pool"))
    how = {"kernel": kernel, "positions": positions, "axis": axis, "grid": grid}
    report = load_timm2d(network, tensors, name=name, new_head=own_head, strict=strict, **how)
    report = report.with_origins(origins, dropped)
    logger.info("%s: %s", name, report)
    return Inflated(network, report)


def create_timm2d(
    name: str,
    img_size: int | Sequence[int],
    patch_size: int | Sequence[int],
    *,
    pretrained: bool | Mapping[str, Any] | str | Path = False,
    **options: Any,
) -> Inflated:
    """A 3D network from the name of one of timm's 2D Vision Transformers.

    Args:
        name: timm's, as ``"vit_base_patch14_reg4_dinov2.lvd142m"``.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch size in ``(H, W, D)``.
        pretrained: True takes timm's weights, downloaded if they are not in its cache; a state dict or a file are
            taken instead; False leaves the network as it was initialised.
        options: as for :func:`from_timm2d`.

    Returns:
        The network, and what became of each key.

    Raises:
        WeightsError: no such Vision Transformer in timm, or as :func:`from_timm2d`.
    """
    if not timm.models.is_model_in_modules(name.split(".")[0], _MODULES):
        raise WeightsError(f"{name!r} is none of timm's Vision Transformers; see timm.list_models('*vit*').")
    if pretrained is True:
        return from_timm2d(timm.create_model(name, pretrained=True), img_size, patch_size, name=name, **options)
    model = _without_weights(name)
    if isinstance(pretrained, Mapping):
        return from_timm2d(model, img_size, patch_size, state=pretrained, **options)
    if pretrained is not False:
        state = read_checkpoint(pretrained)
        return from_timm2d(model, img_size, patch_size, state=state, name=str(pretrained), **options)
    options = {key: value for key, value in options.items() if key not in _HOW}
    network = VisionTransformer3D(img_size, patch_size, **{**timm_options(model), **options})
    return Inflated(network, LoadReport(initialised=tuple(network.state_dict())))


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor],
    model: VisionTransformer3D,
    *,
    kernel: str = "mean",
    positions: str = "repeat",
    axis: int = 2,
    grid: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """A state dict with the patch kernel and the positions that a 3D network needs, as timm's models have one.

    Args:
        state_dict: of a timm VisionTransformer, or of a :class:`VisionTransformer3D` with another patch, grid or
            number of channels; keys are kept.
        model: the network that the weights are for.
        kernel: how a 2D kernel is inflated, ``"mean"``, ``"center"`` or ``"trilinear"``.
        positions: how 2D positions are inflated, ``"repeat"`` or ``"factored"``.
        axis: the slice axis, 0, 1 or 2 of ``(H, W, D)``.
        grid: patches along the axes that the positions were learned on; None finds a square (of a 3D kernel: the
            network's own grid or a cube).

    Returns:
        A new dict; tensors that need no change are the same objects. Half precision becomes float32 where changed.

    Raises:
        UsageError: unknown mode or axis.
        WeightsError: no kernel, or positions that do not fit the grid.
    """
    weight = state_dict.get(KERNEL)
    if weight is None or weight.dim() not in (4, 5):
        came = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
        raise WeightsError(f"{KERNEL} is {came}; one of shape (E, C, h, w) or (E, C, h, w, d) is needed.")
    found = dict(state_dict)
    patch = tuple(model.patch_embed.patch_size)
    chans = int(model.in_chans)
    if weight.dim() == 4 or tuple(weight.shape[1:]) != (chans, *patch):
        found[KERNEL] = fit_kernel(_at_least_float32(weight), patch, chans, kernel, axis)
    pos, own = found.get(POS), model.pos_embed
    if pos is not None and isinstance(own, nn.Parameter):
        prefix = own.shape[1] - model.num_patches
        old = _grid(pos.shape[1] - prefix, weight.dim() - 2, tuple(model.grid_size), grid)
        if len(old) == 3:
            found[POS] = _resampled(pos, old, tuple(model.grid_size), prefix)
        else:
            found[POS] = inflate_positions(_at_least_float32(pos), old, model.grid_size, prefix, positions, axis)
    return found


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _grid(count: int, axes: int, own: tuple[int, ...], grid: Sequence[int] | None) -> tuple[int, ...]:
    """The grid that ``count`` positions were learned on: what was said, the network's own, or a square or cube."""
    if grid is None and axes == 3 and count == prod(own):
        return own
    side = round(max(count, 0) ** (1 / axes))
    old = (side,) * axes if grid is None else tuple(grid)
    if len(old) != axes or prod(old) != count or count < 1:
        raise WeightsError(
            f"pos_embed has positions for {count} patches, grid={grid} came; {axes} numbers with that product are "
            "needed. Name the grid that they were learned on."
        )
    return old


def _resampled(pos: Tensor, old: tuple[int, ...], new: tuple[int, ...], prefix: int) -> Tensor:
    if old == new:
        return pos
    return resample_pos_embed(pos, (old[0], old[1], old[2]), (new[0], new[1], new[2]), prefix)


def _without_weights(name: str) -> nn.Module:
    """timm's model on the meta device, for its architecture alone."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, device="meta")
    except RuntimeError as error:  # a tag that timm does not know
        raise WeightsError(f"{name!r}: {error} See timm.list_pretrained({name.split('.')[0]!r}).") from error
    return model


def _refuse_empty(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights without a patch kernel, or without values."""
    if KERNEL not in tensors:
        raise WeightsError(f"{name}: no {KERNEL}, nor any layout that timm can read. Weights of a ViT are needed.")
    if any(value.is_meta for value in tensors.values()):
        raise WeightsError(f"{name}: tensors on the meta device have no values. Give the weights as state=.")
