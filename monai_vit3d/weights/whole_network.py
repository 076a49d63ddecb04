"""Build whole trained networks from their file of weights, or load one into a network with other classes."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.data.files import file_identity
from monai_vit3d.networks import FoldEnsemble, VisionTransformer3D
from monai_vit3d.networks.checkpoints import as_state_dict, read_checkpoint, read_with_metadata, refuse_differences
from monai_vit3d.networks.model_args import class_of
from monai_vit3d.networks.recorded import build_own, build_whole, files_in, recorded_args
from monai_vit3d.networks.weights_licence import LICENCE_KEY, set_weights_licence
from monai_vit3d.networks.wrappers import load_plain_state_dict, plain_state_dict, unwrap_network

from .backbone import PREFIX, load_backbone
from .built_from import record_built_from

logger = logging.getLogger(__name__)
_ENTRIES = ("model", "network")  # of a checkpoint that holds more, as last.pt


def network_from(
    path: str | Path | Sequence[str | Path],
    *,
    img_size: int | Sequence[int] | None = None,
    global_pool: str | None = None,
    fc_norm: bool | None = None,
    average: str = "softmax",
    tokens: str | float | None = None,
    **expected: Any,
) -> nn.Module:
    """Build the network that a file of weights describes, and load the weights; of several files, their ensemble.

    Every state dict of a :class:`VisionTransformer3D`, :class:`TokenSegmenter` or :class:`TokenClassifier` records the
    arguments that build the network, and so does every file that a training of this package writes.

    Args:
        path: a file of a training (``model.pt``, ``last.pt``, ``encoder.safetensors``), the state dict of one of these
            networks by ``torch.save``, or a folder of ``save_pretrained``. A list of two or more gives a
            :class:`~monai_vit3d.networks.FoldEnsemble`, a list of one that network itself.
        img_size: of the backbone, whose positions are resampled; None keeps the file's.
        global_pool: of a backbone alone: another pooling; None keeps the file's.
        fc_norm: of a backbone alone: False leaves the final norm before ``global_pool``; None as the constructor's.
        tokens: which patches get a token, as :meth:`VisionTransformer3D.set_tokens` takes it; None keeps the file's.
        average: of several files: what of the networks' outputs is averaged, as :class:`FoldEnsemble` has it.
        expected: arguments that the network must have, as ``num_classes=3`` or ``backbone={"depth": 8}``; those that
            are None are not compared.

    Returns:
        The network, in evaluation mode.

    Raises:
        WeightsError: a file is missing or damaged, records no arguments, or other ones than ``expected``; or the list
            is empty.
        UsageError: networks that cannot be averaged, or ``average`` of another name.
        ValueError: ``tokens`` of another value.

    Example:
        >>> net = network_from("runs/train/model.pt", num_classes=3)
    """
    options: dict[str, Any] = {
        **{"img_size": img_size, "global_pool": global_pool, "fc_norm": fc_norm},
        **({} if tokens is None else {"tokens": tokens}),
    }
    if not isinstance(path, str | os.PathLike):
        files = list(path)
        if not files:
            raise WeightsError("path=[]: an empty list of weights; name one file or more.")
        members = [network_from(file, **options, **expected) for file in files]
        return members[0] if len(members) == 1 else FoldEnsemble(members, average).eval()
    config, weights = files_in(Path(path)) if Path(path).is_dir() else (Path(path), Path(path))
    identity = file_identity(weights)
    state, args, licence = _read_recorded(config, weights)
    _refuse_unexpected(args, expected, path)
    if class_of(args) == VisionTransformer3D.__name__:
        stated = {key: value for key, value in options.items() if value is not None}
        network: nn.Module = build_own(args, state, str(path), owned=True, **stated).network
    elif global_pool is not None or fc_norm is not None:
        raise UsageError(
            f"{path}: a {class_of(args)}; global_pool and fc_norm are of a backbone alone. Leave them out."
        )
    else:
        network = build_whole(args, state, str(path), img_size=img_size)
        if tokens is not None:
            network.set_tokens(tokens)  # type: ignore[operator]
    set_weights_licence(network, licence)
    record_built_from(network, identity)
    return network


def _read_recorded(config: Path, weights: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Read a network's state dict, its recorded arguments, and the weights' licence if the file names one."""
    content, metadata = read_with_metadata(weights)
    content = next((content[key] for key in _ENTRIES if isinstance(content, Mapping) and key in content), content)
    state = as_state_dict(content, weights)
    return state, recorded_args(state, metadata, config, weights), metadata.get(LICENCE_KEY)


def _refuse_unexpected(args: Mapping[str, Any], expected: Mapping[str, Any], path: str | Path) -> None:
    unlike = _unlike(args, expected)
    if unlike:
        raise WeightsError(
            f"{path}: weights of another architecture: {'; '.join(unlike)}. Leave these arguments out, or name weights "
            "that have them."
        )


def _unlike(args: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Name the arguments that differ from the expected ones."""
    own, unlike = {**args, **(args.get("options") or {})}, []
    for key, value in expected.items():
        came = own.get(key)
        if isinstance(value, Mapping) and isinstance(came, Mapping):
            unlike += _unlike(came, value)
        elif value is not None and came != value and came != [value] * 3 and came != list(ensure_tuple(value)):
            unlike.append(f"{key}={came!r} came, {value!r} is expected")
    return unlike


def load_network(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a whole trained network into one of the same kind, whose number of classes may be another.

    The backbone comes as by :func:`load_backbone`, which adapts channels, patch and grid; all others must fit, but for
    layers whose outputs are the classes: where their number is another they stay as they were initialised, and the log
    names them.

    Args:
        network: a network with a ``backbone`` and a decoder or head, wrapped or not. It is changed in place.
        path: the state dict of such a network, by ``torch.save`` or as safetensors.

    Returns:
        ``network``.

    Raises:
        WeightsError: as :func:`load_backbone`; or the file has a backbone alone, or another decoder or head. The
            network is unchanged then.
        UsageError: a network without a backbone.
    """
    came = _beside_backbone(as_state_dict(read_checkpoint(path), path))
    own = _beside_backbone(plain_state_dict(network))
    name = type(unwrap_network(network)).__name__
    if not came:
        raise WeightsError(f"{path}: a backbone alone; expected the whole of a {name}. Load it with load_backbone.")
    anew = _of_other_classes(network, own, came)
    came = {key: value for key, value in came.items() if key not in anew}
    refuse_differences({key: own[key] for key in own if key not in anew}, came, path, name)
    load_backbone(network, path)
    load_plain_state_dict(network, {**plain_state_dict(network), **came})
    logger.info("%s: loaded %d tensors of the rest; %s", path, len(came), _told(anew))
    return network


def _beside_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(PREFIX)}


def _of_other_classes(
    network: nn.Module, own: dict[str, Tensor], came: dict[str, Tensor]
) -> dict[str, tuple[int, int]]:
    """Find the tensors that differ in the number of classes alone, and their lengths along that axis, theirs and ours.

    So they do if the network, given as many classes, has the shapes that came.
    """
    unlike = {
        key: (came[key].shape, own[key].shape) for key in own if key in came and own[key].shape != came[key].shape
    }
    pairs = {(a, b) for had, has in unlike.values() if len(had) == len(has) for a, b in zip(had, has) if a != b}
    if len(pairs) != 1:
        return {}
    had, has = pairs.pop()
    other: Any = copy.deepcopy(unwrap_network(network))
    classes = getattr(other, "num_classes", None) or has  # of an ordinal task there is an output less
    with suppress(AttributeError, ValueError):  # a decoder or head of its own, that cannot be given other classes
        other.reset_classifier(had + classes - has)
        given = _beside_backbone(plain_state_dict(other))
        if all(given[key].shape == came[key].shape for key in unlike):
            return dict.fromkeys(unlike, (had, has))
    return {}


def _told(anew: dict[str, tuple[int, int]]) -> str:
    if not anew:
        return "nothing starts anew"
    had, has = next(iter(anew.values()))
    return f"{', '.join(anew)} start anew, with {has} outputs instead of {had}"
