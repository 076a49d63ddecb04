"""Recognise checkpoints of other projects by their keys, unwrap them, and build backbones of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers.patch_embed import to_3tuple
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.checkpoints import as_state_dict, is_ours, read_with_metadata
from monai_vit3d.networks.load_report import Inflated
from monai_vit3d.networks.meta_init import blank_network
from monai_vit3d.networks.model_args import RECORD
from monai_vit3d.networks.recorded import build_own, checked_args, files_in, recorded_args
from monai_vit3d.networks.weights_licence import LICENCE_KEY, set_weights_licence

from .convert import nidl
from .convert.building import options_checked
from .convert.families import FAMILIES, OURS, family_of
from .convert.monai_vit import add_tanh
from .convert.shapes import HEAD_WIDTH, KERNEL, POS
from .convert.spectre import SPECTRE_COMBINER
from .convert.timm2d import load_timm2d
from .convert.unwrap import unwrap

logger = logging.getLogger(__name__)

_INFLATE = ("kernel", "positions", "axis")
_NEEDED = ("img_size", "patch_size", "in_chans", "num_heads", "pos_embed")
_ADVICE = "Pass the options that the weights were trained with."
_BARE = (
    " By its keys it is nidl's or a bare state dict of this package; of the latter, build it as it was and use "
    "load_backbone, or save it with save_pretrained, which says all."
)
# what is taken where no tensor shows it
_TAKEN = {"norm_layer": "LayerNorm of eps 1e-5", "act_layer": "GELU", "rope": "no rotary positions"}
_ON_POSITIONS = (
    " There are no learned positions: pos_embed='sincos' is nidl's table, which its files do not hold; 'none' none. "
    "Weights of a VisionTransformer3D of this package with sin-cos positions: build it and use load_backbone."
)


@dataclass(frozen=True)
class Source:
    """A checkpoint, recognised.

    Attributes:
        family: a key of ``FAMILIES``, or ``"monai_vit3d"``.
        wrapping: what was taken off, outermost first: ``"state_dict"`` an entry, ``"module."`` a prefix.
        state: the tensors of the encoder and its head, under the family's own keys.
        options: keywords of :class:`VisionTransformer3D`, as far as shapes and keys show them; of our own files, what
            :func:`~monai_vit3d.networks.model_args` returned.
        assumed: those of the options that no shape shows and that are assumed unless they are passed.
        left_out: keys and entries that are no part of the encoder.
        name: where it came from, for messages.
        verified: whether the file has a sha256 of its tensors, which is then theirs.
        licence: of the weights, if the file's header says it.
    """

    family: str
    wrapping: tuple[str, ...]
    state: dict[str, Tensor]
    options: dict[str, Any]
    assumed: tuple[str, ...]
    left_out: tuple[str, ...]
    name: str = "state_dict"
    verified: bool = False
    licence: str | None = None


def read_source(path: str | Path, *, take: str = "teacher", family: str | None = None) -> Source:
    """Read and recognise a checkpoint: a state dict, what a trainer wrote around one, or files of this package.

    Args:
        path: a file by ``torch.save``, of tensors and plain containers, or safetensors; or a folder of
            ``save_pretrained``.
        take: which of several networks, see :func:`identify`.
        family: what it is, if it is known better than its keys show.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors, or as :func:`identify`.
    """
    weights = files_in(Path(path))[1] if Path(path).is_dir() else Path(path)
    return source_in(*read_with_metadata(weights), path, take=take, family=family)


def source_in(
    content: Any, metadata: Mapping[str, str], path: str | Path, *, take: str = "teacher", family: str | None = None
) -> Source:
    """Recognise a checkpoint whose file was read already, as :func:`read_source`.

    Args:
        content: what the file held.
        metadata: of its header.
        path: the file or the folder.
        take: as there.
        family: as there.

    Raises:
        WeightsError: as there.
    """
    folder = Path(path).is_dir()
    if folder or (family in (None, OURS) and RECORD in metadata):
        config, weights = files_in(Path(path)) if folder else (Path(path), Path(path))
        state = as_state_dict(content, weights)
        args = recorded_args(state, metadata, config, weights)
        return Source(OURS, (), state, args, (), (), str(path), True, metadata.get(LICENCE_KEY))
    source = identify(content, str(path), take=take, family=family)
    return replace(source, verified=is_ours(metadata), licence=metadata.get(LICENCE_KEY))


def identify(state: Any, name: str = "state_dict", *, take: str = "teacher", family: str | None = None) -> Source:
    """Recognise a checkpoint that was read already.

    Args:
        state: a state dict, or a checkpoint that has one in any nesting of ``state_dict``, ``model``, ``network``,
            ``teacher``, ``module.``, ``_orig_mod.``, ``backbone.``, ``encoder.`` and the like.
        name: where it came from, for messages.
        take: of an averaged network and the one that was trained, ``"teacher"`` takes the averaged one, ``"student"``
            the other; any other word that one which lies under it.
        family: what it is, if it is known better than its keys show.

    Raises:
        WeightsError: not a Vision Transformer that is known, several of them, or one that cannot be hosted (as
            SAM-Med3D's or a Swin transformer); the message names what there is.
        UsageError: an unknown ``family``, or ``"monai_vit3d"``, which a file's header says.
    """
    if family is not None and family not in FAMILIES:
        raise UsageError(f"family={family!r}; expected one of {', '.join(map(repr, FAMILIES))}.")
    unwrapped = unwrap(state, family_of, name, take, family == SPECTRE_COMBINER.name)
    if family is None and unwrapped.args:
        args = checked_args(unwrapped.args, name)
        return Source(OURS, unwrapped.wrapping, unwrapped.state, args, (), unwrapped.beside, name)
    row = FAMILIES[family or family_of(unwrapped.state)]
    try:
        own, left_out = row.encoder(unwrapped.state)
        options, assumed = row.options(unwrapped.state, None)
    except (IndexError, TypeError, RuntimeError, ValueError) as error:  # also of tensors with other axes than theirs
        raise WeightsError(f"{name}: {error}") from error
    return Source(row.name, unwrapped.wrapping, own, options, assumed, (*left_out, *unwrapped.beside), name)


def backbone_from(
    source: Source | Mapping[str, Any] | str | Path,
    *,
    grid: tuple[int, int, int] | None = None,
    take: str = "teacher",
    **options: Any,
) -> Inflated:
    """Build a backbone with the weights of a checkpoint of this or another project.

    The weights of a file are in memory once.

    Args:
        source: a checkpoint: recognised, read, or its file.
        grid: patches along ``(H, W, D)`` that its positions were learned on, if neither those of ``img_size`` nor a
            cube; they are resampled trilinearly to the grid of ``img_size``, without which it is that of the network.
        take: which of several networks, see :func:`identify`.
        options: keywords of :class:`VisionTransformer3D`, of 2D weights also ``kernel``, ``positions`` and ``axis`` as
            for :func:`from_timm2d`; ``norm_eps``, of the layer norms. They override what the checkpoint shows. No
            tensor of MONAI's networks, nidl's and most others shows ``num_heads``: it must be passed. nidl's layout is
            that of a bare state dict of this package, too, of which no tensor shows the eps, the activation or rotary
            positions. Another ``patch_size`` or ``in_chans`` than its kernel's resamples that. nidl's files do not
            hold sin-cos positions: ``pos_embed="sincos"`` gives its own table, kept as positions that are not trained.
            Of our own files as for :meth:`VisionTransformer3D.from_pretrained`.

    Returns:
        The network, in eval mode, at least in float32 (of our own files as they are) unless ``device`` and ``dtype``
        say otherwise; and what became of each key: all that came are named, and what was assumed.

    Raises:
        WeightsError: a key or a shape is unexpected, something is shown by no tensor and was not passed, or the
            family needs another constructor.
        UsageError: options that no network can be built with; of our own files: ``grid``, or options that would
            change what the weights compute.
    """
    owned = isinstance(source, (str, Path))
    if not isinstance(source, Source):
        source = identify(source, take=take) if isinstance(source, Mapping) else read_source(source, take=take)
    if source.family == OURS and grid is not None:
        raise UsageError(f"{source.name}: grid={grid}; weights of monai_vit3d say theirs. Leave it out.")
    with options_checked(source.name):
        if source.family == OURS:
            built = build_own(source.options, source.state, source.name, owned=owned, **options)
        else:
            built = _built(source, grid, owned, options)
    set_weights_licence(built.network, source.licence)
    return built


def _built(source: Source, grid: tuple[int, int, int] | None, owned: bool, options: dict[str, Any]) -> Inflated:
    place = {key: options.pop(key, None) for key in ("device", "dtype")}
    inflate = {key: options.pop(key) for key in _INFLATE if key in options}
    if "norm_eps" in options:
        options["norm_layer"] = partial(nn.LayerNorm, eps=float(options.pop("norm_eps")))
    row = FAMILIES[source.family]
    keywords, trained_patch, assumed = _completed(source, options, grid)
    state, origins = row.to_our_keys(source.state, trained_patch)
    if inflate and state[KERNEL].dim() != 4:
        raise UsageError(f"{source.name}: {', '.join(inflate)}: for 2D weights, not for {source.family}. Leave it out.")
    if row.fixed_positions is not None and POS not in state and keywords["pos_embed"] == "sincos":
        network = blank_network(VisionTransformer3D, **{**keywords, "pos_embed": "learned", "no_embed_class": True})
        table = row.fixed_positions(grid or network.grid_size, int(network.embed_dim))
        state[POS], origins[POS] = table, f"{source.family}'s sin-cos table"
        cast(Tensor, network.pos_embed).requires_grad_(False)
    else:
        network = blank_network(VisionTransformer3D, **keywords)
    new = [
        key for key in ("num_classes", "global_pool") if options.get(key, source.options[key]) != source.options[key]
    ]
    if "num_classes" not in new:
        add_tanh(network, state)
    wide = torch.float64 if any(value.dtype == torch.float64 for value in state.values()) else torch.float32
    how = {"name": source.name, "new_head": bool(new), "grid": grid, "owned": owned, "advice": _ADVICE, **inflate}
    report = load_timm2d(network.to(place["dtype"] or wide), state, **how).with_origins(origins, source.left_out)
    report = replace(report, assumed=(*assumed, *report.assumed))
    where = " ".join(source.wrapping) or "the top"
    family = "nidl or a bare state dict of this package" if source.family == "nidl" else source.family
    logger.info("%s: %s at %s: %s", source.name, family, where, report.summary)
    logger.debug("%s: %s at %s: %s", source.name, family, where, report)
    if assumed:
        logger.warning("%s: no tensor shows it, so it was assumed: %s", source.name, ", ".join(assumed))
    return Inflated(network.to(place["device"]).eval() if place["device"] else network.eval(), report)


def _completed(
    source: Source, options: Mapping[str, Any], grid: tuple[int, int, int] | None
) -> tuple[dict[str, Any], tuple[int, int, int], tuple[str, ...]]:
    """All keywords of the network, the patch that the weights were trained with, and what was assumed in words.

    Refused if some are missing.
    """
    if source.family == "timm2d":
        raise WeightsError(
            f"{source.name}: a 2D Vision Transformer of timm; no key tells which. "
            "create_model(NAME, img_size, patch_size, pretrained=PATH), with timm's NAME, makes it 3D."
        )
    shown, assumed = source.options, source.assumed
    if "patch_size" in options and "patch_size" not in shown:
        patch = to_3tuple(options["patch_size"], "patch_size")
        shown, assumed = FAMILIES[source.family].options(source.state, patch)
    if grid is not None and len(grid) == 3 and "patch_size" in shown:
        sides = to_3tuple(grid, "grid")
        shown = {**shown, "img_size": tuple(n * p for n, p in zip(sides, shown["patch_size"]))}
    keywords = {**shown, **options}
    _refuse_missing(source, keywords)
    trained, patch = shown["patch_size"], to_3tuple(keywords["patch_size"], "patch_size")
    if patch != trained and "embed_layer" in shown:
        raise UsageError(f"{source.name}: patch_size={patch}; its stem of convolutions keeps {trained}. Leave it out.")
    if "img_size" not in options:  # the grid is kept
        keywords["img_size"] = tuple(n // p * q for n, p, q in zip(shown["img_size"], trained, patch))
    elif source.family == "nidl" and POS in source.state and "no_embed_class" not in options:
        prefix = int(keywords["class_token"]) + keywords["reg_tokens"]
        keywords |= nidl.place_prefix(source.state[POS].shape[1], prefix, options["img_size"], patch)
    rope = FAMILIES[source.family].rope
    if rope is not None and "rope" not in options:
        keywords["rope"] = rope(source.state, keywords, _trained_grid(keywords, shown, grid))
    given = {*options, *(["img_size"] if grid is not None else [])}
    return keywords, trained, tuple(_assumed(key, keywords) for key in assumed if key not in given)


def _trained_grid(
    keywords: Mapping[str, Any], shown: Mapping[str, Any], grid: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    """Return the grid that weights were trained on: the given one, the one their positions show, or the network's."""
    if grid is not None:
        return to_3tuple(grid, "grid")
    size, patch = (shown, shown["patch_size"]) if "img_size" in shown else (keywords, keywords["patch_size"])
    sides = zip(to_3tuple(size["img_size"], "img_size"), to_3tuple(patch, "patch_size"))
    height, width, depth = (n // p for n, p in sides)
    return height, width, depth


def _refuse_missing(source: Source, keywords: Mapping[str, Any]) -> None:
    missing = [key for key in _NEEDED if key not in keywords]
    if missing:
        width = keywords["embed_dim"]
        hint = f" ({HEAD_WIDTH}-wide heads would be {width // HEAD_WIDTH})" if width % HEAD_WIDTH == 0 else ""
        words = ", ".join(f"{key}={hint if key == 'num_heads' else ''}" for key in missing)
        more = _ON_POSITIONS if "pos_embed" in missing else _BARE if source.family == "nidl" else ""
        raise WeightsError(f"{source.name}: no tensor shows {', '.join(missing)}; pass {words}.{more}")


def _assumed(key: str, keywords: Mapping[str, Any]) -> str:
    """Format an option that was assumed."""
    if key == "img_size":
        sides = [n // p for n, p in zip(keywords["img_size"], to_3tuple(keywords["patch_size"], "patch_size"))]
        return f"grid {'x'.join(map(str, sides))}"
    return _TAKEN.get(key, f"{key}={keywords[key]!r}" if key in keywords else key)
