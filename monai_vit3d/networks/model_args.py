"""The arguments that build a network again, in JSON's types: read off a network, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from monai_vit3d.data.errors import WeightsError

from .backbone_args import built_backbone, class_path, missing_classes

RECORD = "model_args"  # the key in the metadata of a state dict and of a file
BACKBONE = "VisionTransformer3D"  # the class without a decoder or head
_BY_KEY = {"decoder": "TokenSegmenter", "head": "TokenClassifier"}
NETWORK_CLASSES: dict[str, type[nn.Module]] = {}  # this package's networks by name, filled where they are defined


def model_args(network: nn.Module) -> dict[str, Any]:
    """Return the arguments that build a network again, in JSON's types.

    They are read off the network, so they hold after ``set_input_size``, ``reset_classifier`` and pruning. Of a
    backbone they leave out drop rates, the type, the device and the current spacing of rotary positions in mm.

    Args:
        network: a :class:`VisionTransformer3D`, or a :class:`TokenSegmenter` or :class:`TokenClassifier`.

    Returns:
        ``class`` and constructor arguments by name. Of a backbone: sizes in ``(H, W, D)``; layers as the names of
        their classes, their own arguments under ``block_options``, ``mlp_options``, ``act_options``,
        ``norm_options``, ``norm_eps``, those of the patch embedding's norm under ``embed_norm``; ``grid_size``
        (patches along each axis); ``no_embed_class`` False where there are no prefix tokens; ``pos_trained`` False
        where positions are a parameter that takes no gradient, as a table of another project's, though the patch
        kernel takes one. Of a segmenter or classifier: ``backbone`` with its own arguments, ``out_indices``,
        ``decoder`` or ``head`` by name, and their ``options``. ``foreign`` names the arguments whose classes are
        known neither to torch, timm nor this package, and these classes.

    Raises:
        TypeError: another network.
    """
    describe = getattr(network, "_described", None)
    if describe is None:
        raise TypeError(f"network is a {type(network).__name__}; expected one of {', '.join(NETWORK_CLASSES)}.")
    return {"class": type(network).__name__, **describe()}


def build_network(args: Mapping[str, Any], factory: Callable[..., nn.Module] | None = None, **overrides: Any) -> Any:
    """Build the network that :func:`model_args` describes, newly initialised.

    Args:
        args: as :func:`model_args` returned them.
        factory: the class to build; None takes this package's class.
        overrides: keywords of the constructor used instead, of a segmenter or classifier also those of its backbone.
            A class of one's own, which ``args`` names under ``foreign``, must be passed here: no code is looked up
            by a file's word.

    Raises:
        WeightsError: a class without a name here that was not passed, or arguments that build no network.
    """
    kind = class_of(args)
    factory = factory or NETWORK_CLASSES[kind]
    try:
        if kind == BACKBONE:
            return built_backbone(args, factory, overrides)
        return _built_around_backbone(args, factory, overrides)
    except WeightsError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        raise WeightsError(
            f"no network can be built of these arguments ({type(error).__name__}: {error}). Those of a {kind}, as "
            "networks.model_args() returns them, are expected."
        ) from error


def class_of(args: Mapping[str, Any]) -> str:
    """Return the name of this package's class that arguments are of."""
    return next((name for key, name in _BY_KEY.items() if key in args), BACKBONE)


def args_in_state(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the arguments that a network's own ``state_dict()`` recorded; empty where there are none.

    Args:
        state: a state dict; a plain dict has lost the record.
        prefix: of the names of a part, as ``"backbone."``, whose arguments are returned.
    """
    metadata = getattr(state, "_metadata", None)
    entry = metadata.get(prefix.removesuffix(".")) if isinstance(metadata, Mapping) else None
    args = entry.get(RECORD) if isinstance(entry, Mapping) else None
    return dict(args) if isinstance(args, Mapping) else {}


def describe_around_backbone(network: Any, part: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network with a ``backbone`` and one more part.

    Args:
        network: the network.
        part: the name of the other part, ``"decoder"`` or ``"head"``.
        record: its name and other arguments of the constructor; without its name where it was built by the caller.
    """
    foreign = {} if part in record else {part: getattr(network, part)}
    backbone = network.backbone
    if not hasattr(backbone, "_described"):
        foreign["backbone"] = backbone
    try:
        options = json.loads(json.dumps(record.get("options", {})))
    except TypeError:  # a class among them
        options, foreign = {}, {**foreign, part: getattr(network, part)}
    return {
        **{part: None, **record},
        "options": options,
        "num_classes": network.num_classes,
        "out_indices": list(network.out_indices),
        "backbone": None if "backbone" in foreign else model_args(backbone),
        "foreign": {key: class_path(layer) for key, layer in foreign.items()},
    }


def _built_around_backbone(
    args: Mapping[str, Any], factory: Callable[..., nn.Module], overrides: dict[str, Any]
) -> Any:
    own = {**args, **args["options"]}
    for key in ("class", "options", "foreign", "backbone"):
        own.pop(key)
    own |= {key: overrides.pop(key) for key in (*own, "freeze") if key in overrides}
    missing = {key: name for key, name in args["foreign"].items() if key not in overrides and own.get(key) is None}
    if missing:
        raise WeightsError(missing_classes(missing))
    backbone = overrides.pop("backbone", None)
    if backbone is None:
        backbone = build_network(args["backbone"], **overrides)
    built = next(key for key in _BY_KEY if key in args)
    if isinstance(own[built], nn.Module):  # it has its options
        return factory(backbone, own[built], out_indices=own["out_indices"])
    return factory(backbone, **own)
