"""Reading checkpoints, never anything but tensors."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.errors import WeightsError


def read_checkpoint(path: str | Path) -> Any:
    """What ``torch.save`` wrote, as long as it is tensors and plain containers.

    Args:
        path: the file.

    Raises:
        WeightsError: the file is missing, damaged (checksums are verified), or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Train a model into it, or name another file.")
    try:
        # torch does not check the archive's checksums: a flipped bit would load as another weight
        damaged = zipfile.ZipFile(path).testzip() if zipfile.is_zipfile(path) else None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise WeightsError(
            f"{path}: not a readable state dict ({type(error).__name__}). It may be cut off, or hold more than "
            "tensors, which is never loaded. Save network.state_dict() alone, or fetch the file again."
        ) from error
    if damaged is not None:
        raise WeightsError(f"{path}: damaged, the checksum of {damaged} is wrong. Fetch the file again.")
    return state


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict into a network, all of it or nothing.

    Args:
        network: the network that the weights were made with; it keeps its device and dtype.
        path: a file that ``torch.save(network.state_dict(), path)`` wrote.

    Returns:
        ``network``.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors, or fits another architecture; the
            message names keys and shapes that differ. The network is unchanged then.
    """
    return load_state(network, read_checkpoint(path), path)


def load_backbone(network: nn.Module, path: str | Path) -> nn.Module:
    """Load the backbone of another network's weights into ``network.backbone``, all of it or nothing.

    Args:
        network: a :class:`TokenSegmenter` or :class:`TokenClassifier`; its decoder or head stays as it is.
        path: the state dict of any network that has a ``backbone`` of the same options.

    Returns:
        ``network``.

    Raises:
        WeightsError: as :func:`load_weights`, or the file holds no backbone.
    """
    prefix = "backbone."
    state = _state_dict(read_checkpoint(path), path)
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not part:
        raise WeightsError(f"{path}: no entry begins with {prefix!r}. Weights of a network with a backbone are needed.")
    load_state(network.backbone, part, path)
    return network


def _state_dict(state: Any, path: str | Path) -> dict[str, torch.Tensor]:
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"{path}: not a state dict of tensors. Save network.state_dict() alone.")
    return state


def load_state(network: nn.Module, state: Any, path: str | Path) -> nn.Module:
    """Load a state dict that was read already, all of it or nothing.

    Args:
        network: the network that the weights were made with.
        state: its state dict.
        path: the file that it came from, for messages.

    Returns:
        ``network``.

    Raises:
        WeightsError: not a state dict, or of another architecture. The network is unchanged then.
    """
    differences = _differences(network.state_dict(), _state_dict(state, path))
    if differences:
        shown = "; ".join(differences[:5])
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise WeightsError(
            f"{path}: weights of another architecture than {type(network).__name__}: {shown}{more}. Build the "
            "network with the options that the weights were trained with."
        )
    network.load_state_dict(state)
    return network


def _differences(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[str]:
    shapes = [
        f"{key} is {tuple(found[key].shape)}, {tuple(value.shape)} is needed"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    missing = [f"{key} is missing" for key in wanted if key not in found]
    return shapes + missing + [f"{key} is not known" for key in found if key not in wanted]
