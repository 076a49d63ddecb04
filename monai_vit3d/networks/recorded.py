"""Build networks from files of weights by the constructor arguments in their header, which is verified."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.data.json_files import read_json_file
from monai_vit3d.layers.adapt_channels import adapt_channels

from .checkpoints import is_ours, refuse_differences
from .load_options import check_options
from .load_report import Inflated, LoadReport
from .meta_init import blank_network, fill
from .model_args import BACKBONE, NETWORK_CLASSES, RECORD, args_in_state, build_network, class_of, model_args
from .options import resolve_pool

if TYPE_CHECKING:
    from .vit3d import VisionTransformer3D

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SIZES, _HEAD, _PLACE = ("img_size", "patch_size"), ("num_classes", "global_pool"), ("device", "dtype")
# options that may change when weights are loaded, besides those
_FREE = (
    "class",
    "foreign",
    "in_chans",
    "dynamic_img_size",
    "dynamic_img_pad",
    "pool_include_prefix",
    "pos_trained",
    "tokens",
)
_POOL = "attn_pool."
_ABSENT = object()
_DICTS = ("backbone", "options", "foreign", "block_options")  # in recorded arguments
_FETCH = "Fetch the files again, or save the network anew with save_pretrained."


def files_in(folder: Path) -> tuple[Path, Path]:
    """Return the paths of a folder's config.json and model.safetensors.

    Raises:
        WeightsError: one is not there.
    """
    files = folder / CONFIG, folder / WEIGHTS
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{file}: no such file. Name a folder that save_pretrained wrote.")
    return files


def args_in(metadata: Mapping[str, str], path: str | Path) -> dict[str, Any]:
    """Return the network's arguments that a file's header has; empty if it has none.

    Args:
        metadata: of the header.
        path: the file, for messages.

    Raises:
        WeightsError: they cannot be read.
    """
    try:
        args = json.loads(metadata.get(RECORD, "{}"))
    except (ValueError, RecursionError):
        args = None
    return checked_args(args, path)


def checked_args(args: Any, path: str | Path) -> dict[str, Any]:
    """Return recorded arguments if their shape is that of :func:`model_args`; a file may hold anything.

    Args:
        args: what a file holds.
        path: the file, for messages.

    Raises:
        WeightsError: no dictionary, or sizes that are none.
    """
    sound = isinstance(args, dict) and all(isinstance(args.get(key) or {}, dict) for key in _DICTS)
    parts = [args, args.get("backbone") or {}] if sound else []
    grids = [part.get("grid_size", [1, 1, 1]) for part in parts]
    if not sound or not all(map(_is_grid, grids)):
        raise WeightsError(
            f"{path}: its header's {RECORD!r} cannot be read; a JSON object with a grid_size of three numbers is "
            "expected. Fetch the file again, or save it anew with save_backbone or save_pretrained."
        )
    return dict(args)


def _is_grid(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) is int and n > 0 for n in value)


def recorded_args(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], config: Path, weights: Path
) -> dict[str, Any]:
    """Return the network's arguments in a file: those that its header and config.json agree on, or the state dict's.

    Args:
        state: the tensors; what ``torch.save`` wrote has the arguments in the state dict's own metadata.
        metadata: of the header.
        config: the path of config.json, or that of the weights, whose header alone has them.
        weights: the path of the weights.

    Raises:
        WeightsError: no header of ours, or one with other arguments than config.json.
    """
    args = args_in_state(state)
    if args:
        return checked_args(args, weights)
    if RECORD not in metadata or not is_ours(metadata):
        raise WeightsError(
            f"{weights}: it has no {RECORD} and sha256 of its own: not what save_pretrained or a training of this "
            "version writes. For tensors alone build the network and use load_weights."
        )
    args = args_in(metadata, weights)
    configured = args if config == weights else _read_config(config)
    both = {*configured, *args}
    unlike = [key for key in sorted(both) if configured.get(key, _ABSENT) != args.get(key, _ABSENT)]
    if unlike:
        pairs = "; ".join(f"{key}: {configured.get(key)!r} there, {args.get(key)!r} here" for key in unlike[:5])
        more = f"; and {len(unlike) - 5} more" if len(unlike) > 5 else ""
        raise WeightsError(f"{weights}: of another architecture than {config.name} says: {pairs}{more}. {_FETCH}")
    return args


def _read_config(path: Path) -> dict[str, Any]:
    args = read_json_file(path, WeightsError, "the network's arguments, which may be cut off")
    if not isinstance(args, dict):
        raise WeightsError(f"{path}: a JSON {type(args).__name__}; an object is expected. {_FETCH}")
    return args


def build_whole(
    args: Mapping[str, Any],
    state: dict[str, Tensor],
    name: str,
    factory: type[nn.Module] | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> nn.Module:
    """Build a segmenter or classifier of its recorded arguments, and give it its tensors, which keep their types.

    Args:
        args: what :func:`recorded_args` returned.
        state: the tensors, which become the network's own.
        name: the file, for messages.
        factory: the class to build; None takes this package's.
        num_classes: of a new last layer; None keeps the file's.
        img_size: of the backbone, whose positions are resampled; None keeps the file's.
        device: where to.
        dtype: of all parameters; None keeps the file's.

    Returns:
        The network, in evaluation mode.

    Raises:
        WeightsError: tensors of another network, or arguments that build none.
        UsageError: a ``dtype`` or ``num_classes`` that is none.
    """
    options = {"num_classes": num_classes, "dtype": dtype}
    check_options(options, {}, factory or NETWORK_CLASSES[class_of(args)], name)
    _refuse_counts(args.get("backbone") or {}, state, name)
    try:
        network = build_network(args, factory)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    refuse_differences(network.state_dict(), state, name, "its arguments say", _FETCH)
    network.load_state_dict(state, assign=True)
    if num_classes is not None and num_classes != network.num_classes:
        network.reset_classifier(num_classes)  # type: ignore[operator]
    if img_size is not None:
        network.backbone.set_input_size(img_size)  # type: ignore[operator,union-attr]
    return network.to(device=device, dtype=options["dtype"]).eval()


def _refuse_counts(args: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> None:
    """Refuse more layers than there are tensors before any is built."""
    counts = [args.get("depth"), dict(args.get("block_options") or {}).get("num_parallel")]
    if any(isinstance(count, (int, float)) and count > len(state) for count in counts):
        raise WeightsError(f"{name}: {counts[0]} blocks, but the weights are {len(state)} tensors. {_FETCH}")


def build_own(
    args: Mapping[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    factory: type[VisionTransformer3D] | None = None,
    *,
    owned: bool,
    **options: Any,
) -> Inflated:
    """Build the network of recorded arguments and give it its tensors, which keep their type.

    Args:
        args: what :func:`recorded_args` returned.
        state: the tensors.
        name: where they came from, for messages.
        factory: the class to build; None takes this package's.
        owned: nobody else has the tensors: they become the network's own.
        options: as for :meth:`VisionTransformer3D.from_pretrained`.

    Returns:
        The network, in evaluation mode, and what became of each tensor.

    Raises:
        WeightsError: tensors that are not of this architecture, or one that cannot be built.
        UsageError: options that would change what the weights compute.
    """
    check_options(options, args, factory or NETWORK_CLASSES[BACKBONE], name)
    if options.get("fc_norm") is False and not args.get("fc_norm") and args.get("global_pool") != "avg":
        args = {**args, "fc_norm": False}  # the norm is before the pooling, and stays there whatever the new one is
    sizes, head, place = ({key: options.pop(key) for key in keys if key in options} for keys in (_SIZES, _HEAD, _PLACE))
    network, tensors = _blank(args, state, factory, options, name), dict(state)
    for name_in_embed in getattr(network.patch_embed, "image_kernels", ("proj.weight",)):
        kernel = f"patch_embed.{name_in_embed}"
        if kernel in tensors and tensors[kernel].dim() == 5:
            tensors[kernel] = adapt_channels(tensors[kernel], int(network.in_chans))
    expected = network.state_dict()
    if "num_classes" not in args and not any(key.startswith(_POOL) for key in tensors):  # save_backbone leaves it out
        expected = {key: value for key, value in expected.items() if not key.startswith(_POOL)}
    refuse_differences(expected, tensors, name, "its architecture says", _FETCH)
    network.to(tensors["patch_embed.proj.weight"].dtype)
    fill(network, tensors, "cpu", owned=owned, keep_types=True)
    if sizes:
        network.set_input_size(**sizes)
    before = {key: value for key, value in network.state_dict(keep_vars=True).items() if key in tensors}
    _new_head(network, **head)
    report = _report(state, before, network)
    logger.info("%s: %s", name, report.summary)
    logger.debug("%s: %s", name, report)
    return Inflated(network.to(**place).eval(), report)


def _blank(
    args: Mapping[str, Any],
    state: Mapping[str, Tensor],
    factory: type[VisionTransformer3D] | None,
    options: dict[str, Any],
    name: str,
) -> VisionTransformer3D:
    """Build the network without values from its recorded arguments, changed by the options that may change."""
    _refuse_counts(args, state, name)
    try:
        network = blank_network(partial(build_network, args, factory), **options)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    now = model_args(network)
    changed = [key for key in now if key in args and key not in _FREE and now[key] != args[key]]
    if changed:
        both = "; ".join(f"{key}={args[key]!r} came, {now[key]!r} was asked for" for key in changed)
        raise UsageError(f"{name}: the weights would compute something else: {both}. Leave out what changes that.")
    return network


def _new_head(network: VisionTransformer3D, num_classes: int | None = None, global_pool: str | None = None) -> None:
    """Give the network the requested head and pooling; a head of as many classes stays."""
    pool = None if global_pool is None else resolve_pool(global_pool, network.has_class_token)
    classes, head = network.num_classes if num_classes is None else int(num_classes), network.head
    keep = classes == network.num_classes
    if not keep or pool not in (None, network.global_pool):
        network.reset_classifier(classes, pool)
        network.head = head if keep else network.head


def _report(came: Mapping[str, Tensor], before: Mapping[str, Tensor], network: VisionTransformer3D) -> LoadReport:
    """Report on each tensor of the file: a new head may have moved it (a norm) or left it out."""
    names = {id(value): key for key, value in before.items()}
    loaded, converted, initialised, used = [], {}, [], set()
    for key, value in network.state_dict(keep_vars=True).items():
        origin = names.get(id(value))
        if origin is None:
            initialised.append(key)
            continue
        used.add(origin)
        if came[origin].shape != value.shape:
            converted[key] = f"{tuple(came[origin].shape)} to {tuple(value.shape)}"
        elif origin != key:
            converted[key] = f"from {origin}"
        else:
            loaded.append(key)
    unused = tuple(key for key in came if key not in used)
    return LoadReport(tuple(loaded), converted, tuple(initialised), unused)
