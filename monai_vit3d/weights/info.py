"""Describe weights before they are loaded, and convert them: what ``vit3d weights`` runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks.load_report import Inflated, LoadReport

from .backbone import save_backbone
from .convert.timm2d import TIMM_MODULES, create_timm2d
from .sources import Source, backbone_from, read_source

_INFLATE = ("axis", "kernel", "positions")
# a head may be another, positions are resampled; the last two are renamed or left out
_NOT_COMPARED = ("head.", "pos_embed", "mask_token", "register_tokens")


def describe_weights(path: str | Path, *, take: str = "teacher", family: str | None = None) -> dict[str, Any]:
    """Describe weights: their family, architecture, and what would be loaded of them.

    Args:
        path: a file, or a folder of ``save_pretrained``.
        take: which of several networks, as for :func:`read_source`.
        family: what they are, if it is known better than their keys show.

    Returns:
        JSON's types: ``file``, ``family``, ``wrapping`` (what was taken off), ``architecture`` (as far as it is
        shown), ``assumed`` (those of its options that were guessed), ``tensors``, ``bytes``, ``types``, ``sha256``,
        ``left_out``; then ``loaded`` (a number), ``converted`` and ``missing`` where a network could be built, or
        ``needed``, which says what is missing; of timm's 2D weights ``timm_models``, the names of those that fit.

    Raises:
        WeightsError: missing, damaged, more than tensors, or no Vision Transformer that is known.
    """
    source = read_source(path, take=take, family=family)
    tensors = source.state.values()
    return {
        "file": str(path),
        "family": source.family,
        "wrapping": list(source.wrapping),
        "architecture": {key: _plain(value) for key, value in source.options.items()},
        "assumed": list(source.assumed),
        "tensors": len(source.state),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}),
        "sha256": "verified" if source.verified else "not in the file",
        "left_out": list(source.left_out),
        **_what_would_load(source),
    }


def convert_weights(
    path: str | Path,
    out: str | Path,
    *,
    timm_name: str | None = None,
    take: str = "teacher",
    family: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> LoadReport:
    """Make weights of another project ours, and write them.

    Args:
        path: a file, or a folder of ``save_pretrained``.
        out: ``.safetensors`` is a file of ``save_backbone``, without a head; else the folder of ``save_pretrained``.
        timm_name: for 2D weights: timm's name of their model.
        take: which of several networks, as for :func:`read_source`.
        family: what they are, if it is known better than their keys show.
        overwrite: write anew what is there.
        options: keywords of the network, as ``img_size``, ``patch_size``, ``in_chans``, ``num_heads``; for 2D weights
            also ``axis``, ``kernel``, ``positions``, ``grid``, as for :func:`from_timm2d`.

    Returns:
        What became of each tensor.

    Raises:
        WeightsError: as :func:`describe_weights`, or an option is missing that no tensor shows.
        UsageError: ``out`` is there, or options that the family has not, or with which no network can be built.
    """
    out = Path(out)
    single = out.suffix.lower() == ".safetensors"
    if not overwrite and (out.exists() if single or not out.is_dir() else any(out.iterdir())):
        raise UsageError(f"{out}: there already. Pass overwrite=True, or name another place.")
    network, report = _built(read_source(path, take=take, family=family), timm_name, options)
    if single:
        save_backbone(network, out)
        return _without_head(report)
    try:
        network.save_pretrained(out)
    except UsageError as error:  # a head of MONAI's ends in a tanh
        more = "If it is the head: num_classes=0 leaves it out, as OUT.safetensors does."
        raise UsageError(f"{path}: {error} {more}") from error
    return report


def _without_head(report: LoadReport) -> LoadReport:
    """Return the report of a file that holds only the encoder, with the head's tensors as unexpected."""
    gone = [key for key in (*report.loaded, *report.converted) if key.startswith("head.")]
    return replace(
        report,
        loaded=tuple(key for key in report.loaded if key not in gone),
        converted={key: how for key, how in report.converted.items() if key not in gone},
        missing=tuple(key for key in report.missing if not key.startswith("head.")),
        unexpected=(*report.unexpected, *gone),
    )


def fitting_timm_models(state: Mapping[str, Tensor]) -> list[str]:
    """List timm's 2D Vision Transformers whose keys and shapes are those of a state dict.

    Shapes do not show everything: activations, norm eps and heads may differ between them.

    Args:
        state: under timm's keys, its head and the number of its positions aside.
    """
    names = sorted({name for module in TIMM_MODULES for name in timm.list_models(module=module)})
    patch, expected = state["patch_embed.proj.weight"].shape[-1], _shapes(state)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    rest = {key: shape for key, shape in expected.items() if not key.startswith("blocks.")}
    first = {key: shape for key, shape in expected.items() if key.startswith("blocks.0.")}
    fits = []
    for name in names:
        match = re.search(r"patch(\d+)_", name)
        if match is not None and int(match[1]) != patch:
            continue
        try:  # with one block first: most are told apart by that, in a tenth of the time
            one = timm.create_model(name, pretrained=False, device="meta", depth=1)
        except AssertionError:  # one whose blocks differ (Sapiens2), and which could not be hosted
            continue
        if _shapes(one.state_dict()) == {**rest, **first}:
            whole: Any = timm.create_model(name, pretrained=False, device="meta")
            fits += [name] if len(whole.blocks) == depth else []
    return fits


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    shapes = {key: tuple(value.shape) for key, value in state.items() if not key.startswith(_NOT_COMPARED)}
    if "register_tokens" in state:  # DINOv2's own word
        shapes["reg_token"] = tuple(state["register_tokens"].shape)
    return shapes


def _plain(value: Any) -> Any:
    """Convert a value to JSON's types; a layer's constructor becomes its name."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if callable(value):
        base = getattr(value, "func", value)
        how = ", ".join(f"{key}={one!r}" for key, one in getattr(value, "keywords", {}).items())
        return getattr(base, "__name__", type(base).__name__) + (f"({how})" if how else "")
    return value


def _what_would_load(source: Source) -> dict[str, Any]:
    if source.family == "timm2d":
        fits, side = fitting_timm_models(source.state), int(source.state["patch_embed.proj.weight"].shape[-1])
        patch = (side, side, max(side // 2, 1))
        how = (f"timm_name={fits[0] if fits else 'NAME'}", f"img_size={','.join(str(7 * n) for n in patch)}")
        example = f"{how[0]} {how[1]} patch_size={','.join(map(str, patch))}"
        return {"needed": f"timm's name of the model, img_size and patch_size: {example}", "timm_models": fits}
    try:
        report = _built(source, None, {}).report
    except WeightsError as error:
        return {"needed": str(error).removeprefix(f"{source.name}: ")}
    return {
        "loaded": len(report.loaded),
        "converted": dict(report.converted),
        "missing": list(report.missing),
        # the source's own are named above
        "unexpected": [key for key in report.unexpected if key not in source.left_out],
    }


def _built(source: Source, timm_name: str | None, options: dict[str, Any]) -> Inflated:
    """Build the network of weights of any family."""
    if source.family == "timm2d":
        return _from_timm(source, timm_name, options)
    spare = [key for key in _INFLATE if key in options] + (["timm_name"] if timm_name else [])
    if spare:
        raise UsageError(f"{source.name}: {', '.join(spare)}: for 2D weights, not for {source.family}. Leave it out.")
    return backbone_from(source, **options)


def _from_timm(source: Source, name: str | None, options: dict[str, Any]) -> Inflated:
    missing = [f"{key}=" for key in ("img_size", "patch_size") if key not in options]
    if name is None or missing:
        needed = ", ".join([*(["timm_name="] if name is None else []), *missing])
        fits = "" if name else f" By their shapes these fit: {', '.join(fitting_timm_models(source.state)) or 'none'}."
        raise UsageError(f"{source.name}: weights of a 2D Vision Transformer; expected {needed}.{fits}")
    try:
        network, report = create_timm2d(name, pretrained=source.state, **options)
    except (WeightsError, UsageError) as error:
        raise type(error)(f"{source.name}: {error}") from error
    return Inflated(network, report.with_origins({}, source.left_out))
