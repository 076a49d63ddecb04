"""Start a training from the encoder of any file or name that this package can read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.data.published_models import published_model, published_models
from monai_vit3d.layers.patch_embed import to_3tuple
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.checkpoints import read_with_metadata
from monai_vit3d.networks.load_report import Inflated
from monai_vit3d.networks.lora import apply_lora
from monai_vit3d.networks.model_args import RECORD, args_in_state, build_network, model_args
from monai_vit3d.networks.recorded import files_in
from monai_vit3d.networks.weights_licence import set_weights_licence

from .backbone import (
    HEAD,
    PREFIX,
    architecture_differences,
    backbone_in,
    backbone_part,
    keeps_patch,
    learned_from_table,
    load_backbone_state,
)
from .convert.families import OURS
from .convert.shapes import HEAD_WIDTH
from .convert.timm2d import create_timm2d, timms_name
from .fetch import fetch_weights
from .sources import Source, backbone_from, source_in
from .whole_network import load_network

logger = logging.getLogger(__name__)
_TO_RECOGNISE = ("take", "family")  # options that are of the file, not of the network
_GRID = 4  # patches along each axis, where nothing says how many


def start_network(
    network: nn.Module,
    pretrained: str | Path | None = None,
    lora_rank: int = 0,
    whole: bool = False,
    encoder_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Prepare a network for training: load an encoder's weights and add adapters, where these are set.

    An encoder of another architecture takes the place of the network's backbone: its width, depth, heads, positions,
    registers and layers come from the file, and the decoder or head is built anew to fit it. Input size, channels and,
    but for a convolutional stem, patch size stay the network's: positions and patch kernel are resampled to them, which
    the log says in a line. Which patches get a token (``tokens``) stays the network's, too.

    Args:
        network: a network with a backbone, which may be changed in place.
        pretrained: a file, folder or name, as for :func:`read_encoder`; None leaves the network as it was initialised.
        lora_rank: above 0: freeze the network and give it adapters of this rank, as :func:`apply_lora` does it.
        whole: take the decoder or head from ``pretrained``, too, as :func:`load_network` does it.
        encoder_options: what ``pretrained`` does not show, as ``{"num_heads": 12}``; see :func:`read_encoder`.

    Returns:
        ``network``, or the one that was built around the encoder.

    Raises:
        UsageError: adapters or a whole network without ``pretrained``: the adapters would be trained beside frozen
            random weights; or a network without a backbone, or a decoder that cannot be built anew.
        WeightsError: no encoder that can be read, or one that does not fit.
    """
    if lora_rank > 0 and not pretrained:
        raise UsageError(
            f"lora_rank={lora_rank} without pretrained: the encoder would stay at its random start. Name the file of "
            "a trained encoder (pretrained), or leave lora_rank at 0."
        )
    if whole and not pretrained:
        raise UsageError("a whole network to start from without pretrained: name the file of a trained network.")
    if pretrained:
        tokens = getattr(backbone_part(network), "tokens", "all")
        network = _with_encoder(network, pretrained, dict(encoder_options or {}))
        backbone_part(network).set_tokens(tokens)  # type: ignore[operator]
    if whole:
        load_network(network, str(pretrained))
    return apply_lora(network, lora_rank) if lora_rank else network


def read_encoder(
    pretrained: str | Path,
    img_size: int | Sequence[int] | None = None,
    patch_size: int | Sequence[int] | None = None,
    in_chans: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Inflated:
    """Build the encoder of a file or name for an input size, patch size and number of channels.

    Args:
        pretrained: a file or folder, as for :func:`~monai_vit3d.weights.read_source`, or the name of a published model
            (``vit3d weights list``) or of one of timm's Vision Transformers, whose weights are fetched.
        img_size: ``(H, W, D)``; None takes the file's, or four patches along each axis.
        patch_size: ``(h, w, d)``; None takes the file's, of 2D weights a cube. A convolutional stem keeps its own.
        in_chans: channels of the images; None takes the file's.
        options: what the file does not show of its training, such as ``num_heads``, ``patch_size`` or the ``grid`` of
            its positions, and ``take``, as for :func:`~monai_vit3d.weights.backbone_from`; ``timm`` or ``published``,
            the name of the model whose weights a file has; ``accept_licence``, as for
            :func:`~monai_vit3d.weights.fetch_weights`.

    Returns:
        The network, and what became of each tensor.

    Raises:
        WeightsError: no encoder that can be read, or something that the file does not show and was not passed.
        UsageError: options that no network can be built with.
    """
    sizes = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
    pretrained, options = _published(pretrained, dict(options or {}))
    name = options.pop("timm", None) or (None if Path(pretrained).exists() else str(pretrained))
    if name is None:
        recognise = {key: options.pop(key) for key in _TO_RECOGNISE if key in options}
        return _of_source(source_in(*_content(pretrained), pretrained, **recognise), sizes, options)
    if not timm.is_model(timms_name(name)):
        raise WeightsError(
            f"{pretrained}: no such file, and no Vision Transformer of timm. Give the path of weights, or one of the "
            "names that timm.list_pretrained('*vit*') has."
        )
    return _of_timm(name, pretrained if Path(pretrained).exists() else True, sizes, options)


def _with_encoder(network: nn.Module, pretrained: str | Path, options: dict[str, Any]) -> nn.Module:
    backbone = backbone_part(network)
    if not isinstance(backbone, VisionTransformer3D):
        raise UsageError(f"backbone is a {type(backbone).__name__}; expected a VisionTransformer3D.")
    sizes: dict[str, Any] = {key: getattr(backbone, key) for key in ("img_size", "patch_size", "in_chans")}
    if {"timm", "published"} & {*options} or not Path(pretrained).exists():
        encoder = read_encoder(pretrained, **sizes, options=options).network
        return _around(network, encoder, pretrained)
    content, metadata = _content(pretrained)
    if (
        not options and RECORD not in metadata and _has_its_names(content, backbone)
    ):  # of a state dict that says no more, that it fits is all
        return load_backbone_state(network, content, {}, pretrained)
    recognise = {key: options.pop(key) for key in _TO_RECOGNISE if key in options}
    source = source_in(content, metadata, pretrained, **recognise)
    if source.family != OURS:
        return _around(network, _of_source(source, sizes, options).network, pretrained)
    needed = model_args(backbone)
    if options or architecture_differences(source.options, needed):
        network = _around(network, build_network(_resized(source.options, needed), **options), pretrained)
    load_backbone_state(network, source.state, source.options, pretrained)
    set_weights_licence(backbone_part(network), source.licence)
    return network


def _published(pretrained: str | Path, options: dict[str, Any]) -> tuple[str | Path, dict[str, Any]]:
    """Return the file of a published model, and what its entry says of it and the caller does not."""
    there, accepted = Path(pretrained).exists(), options.pop("accept_licence", False)
    name = options.pop("published", None if there else str(pretrained))
    if name is None or (name == str(pretrained) and name not in published_models()):
        return pretrained, options
    entry = published_model(name)
    stated = {("timm" if key == "timm_name" else key): value for key, value in entry.options.items()}
    if "timm" not in stated:
        stated |= {key: value for key in _TO_RECOGNISE if (value := getattr(entry, key)) is not None}
    path = pretrained if there else fetch_weights(entry, accept_licence=accepted)
    return path, {**stated, **options}


def _content(path: str | Path) -> tuple[Any, dict[str, str]]:
    return read_with_metadata(files_in(Path(path))[1] if Path(path).is_dir() else Path(path))


def _has_its_names(content: Any, backbone: nn.Module) -> bool:
    """Return whether a file holds a state dict without a record, whose tensors have the names of the backbone's."""
    if not isinstance(content, dict) or args_in_state(content, PREFIX) or args_in_state(content):
        return False
    try:
        return backbone_in(content, "").keys() == backbone_in(backbone.state_dict(), "").keys()
    except WeightsError:
        return False


def _resized(came: Mapping[str, Any], needed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a file's backbone for another input, without its head."""
    sizes = {key: needed[key] for key in ("img_size", "in_chans")}
    sizes |= {} if keeps_patch(came) else {"patch_size": needed["patch_size"]}
    positions = {"pos_embed": "learned"} if learned_from_table(came, needed) else {}
    return {**came, **sizes, **positions, "num_classes": 0, "global_pool": ""}


def _of_source(source: Source, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Inflated:
    """Build the network of a recognised checkpoint for the sizes that are given and can be taken."""
    if source.family == OURS:
        fixed = ("patch_size",) if keeps_patch(source.options) else ()
        fitted = {key: value for key, value in sizes.items() if value is not None and key not in fixed}
        return backbone_from(source, **{**fitted, **options})
    trained = options.get("patch_size", source.options.get("patch_size"))
    kernel = next((value for value in source.state.values() if value.dim() == 4), None)
    if trained is None and kernel is not None:  # a 2D kernel, which gains an axis of any length
        trained = sizes["patch_size"] or [max(kernel.shape[2:])] * 3
    given: dict[str, Any] = {} if sizes["in_chans"] is None else {"in_chans": sizes["in_chans"]}
    if trained is not None:
        trained = to_3tuple(trained, "patch_size")
        is_stem = "embed_layer" in source.options or sizes["patch_size"] is None
        patch = trained if is_stem else to_3tuple(sizes["patch_size"], "patch_size")
        given |= {"patch_size": trained, **_image_size(source, sizes["img_size"], patch, trained)}
    _refuse_missing(source, {**source.options, **given, **options})
    of_task: dict[str, Any] = {key: given[key] for key in ("in_chans", "patch_size") if key in given}
    arguments = {**given, **options, **of_task}
    built = backbone_from(source, **arguments)
    if trained is not None and sizes["img_size"] is not None:
        built.network.set_input_size(sizes["img_size"], patch)
    return Inflated(_normed_tokens(built.network), built.report) if source.options.get("fc_norm") else built


def _normed_tokens(network: VisionTransformer3D) -> VisionTransformer3D:
    """Let the norm of a network that pools norm the tokens themselves, which are what is read of an encoder."""
    args = {**model_args(network), "fc_norm": None, "num_classes": 0, "global_pool": ""}
    state = {key.replace("fc_norm.", "norm."): value for key, value in network.state_dict().items()}
    again: VisionTransformer3D = build_network(args)
    again.load_state_dict({key: value for key, value in state.items() if not key.startswith(HEAD)})
    return again.eval()


def _image_size(source: Source, size: Any, patch: Sequence[int], trained: Sequence[int]) -> dict[str, Any]:
    """Return the input of as many patches as ``size`` has, in patches of the file's."""
    if size is not None:
        return {"img_size": [n // new * old for n, new, old in zip(to_3tuple(size, "img_size"), patch, trained)]}
    return {} if "img_size" in source.options else {"img_size": [_GRID * old for old in trained]}


def _refuse_missing(source: Source, options: Mapping[str, Any]) -> None:
    missing = [key for key in ("patch_size", "num_heads", "pos_embed") if key not in options]
    if missing:
        width = options["embed_dim"]
        heads = f" ({HEAD_WIDTH} wide heads would be {width // HEAD_WIDTH})" if "num_heads" in missing else ""
        raise WeightsError(
            f"{source.name}: {source.family}, in which no tensor shows {', '.join(missing)}{heads}. Give what its "
            f"training had: encoder_options={{{', '.join(f'{key}: ...' for key in missing)}}}."
        )


def _of_timm(name: str, pretrained: Any, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Inflated:
    model: Any = timm.create_model(timms_name(name), pretrained=False, device="meta")
    given = {**options, **{key: value for key, value in sizes.items() if value is not None}}
    patch = given.pop("patch_size", [max(model.patch_embed.patch_size)] * 3)
    image = given.pop("img_size", [_GRID * size for size in to_3tuple(patch, "patch_size")])
    return create_timm2d(name, image, patch, pretrained=pretrained, **{"num_classes": 0, **given})


def _around(network: nn.Module, encoder: VisionTransformer3D, pretrained: str | Path) -> nn.Module:
    """Build a network of the same kind around an encoder; its decoder or head starts anew."""
    before = backbone_part(network)
    encoder = encoder.to(next(network.parameters()).dtype)  # of a file in float64, too
    logger.info("%s: %s", pretrained, _architecture(encoder))
    if before is network:
        return encoder
    args = model_args(network)
    if args["foreign"]:
        raise UsageError(
            f"{pretrained}: an encoder of another architecture, but the decoder or head was built elsewhere. Name one "
            "of this package, or build the network around backbone_from(path)."
        )
    same = (len(before.blocks), before.patch_size) == (len(encoder.blocks), encoder.patch_size)  # type: ignore[arg-type]
    own: dict[str, Any] = {} if same else {"out_indices": None}
    if "head" in args:
        own["freeze"] = network.freeze
    try:
        return build_network(args, backbone=encoder, **own)
    except WeightsError as error:
        raise WeightsError(
            f"{pretrained}: its encoder does not fit the rest of the network: {error.__cause__}"
        ) from error


def _architecture(encoder: VisionTransformer3D) -> str:
    sizes = ", ".join("x".join(map(str, size)) for size in (encoder.img_size, encoder.patch_size))
    return (
        f"its encoder takes the place of the network's: {len(encoder.blocks)} blocks of width {encoder.embed_dim}, "
        f"{encoder.num_heads} heads, {encoder.num_prefix_tokens} prefix tokens; input and patch {sizes} voxels, "
        f"{encoder.in_chans} channels"
    )
