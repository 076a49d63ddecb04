"""Reading checkpoints, never anything but tensors and numbers, and writing safetensors."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from monai_vit3d.data.confinement import check_confined
from monai_vit3d.data.errors import WeightsError
from monai_vit3d.data.files import replacing

from .tensor_bytes import HEADER, HEADER_SUM, TENSORS_SUM, header_sha256, tensors_in
from .wrappers import load_plain_state_dict, plain_state_dict, unwrap_network

logger = logging.getLogger(__name__)

# numpy's numbers, which trainers write beside the tensors (nnU-Net's losses): reading them calls nothing else
_NUMBERS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # numpy before 2
    *(np.float64(0).__reduce__()[0], np.dtype),
    *(type(np.dtype(kind)) for kind in (bool, *"bBhHiIlLqQefd")),
]
StateT = TypeVar("StateT")
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")  # of DataParallel, torch.compile, FSDP


def read_checkpoint(path: str | Path) -> Any:
    """Read the tensors and plain containers that ``torch.save`` wrote, or the tensors of a safetensors file.

    The tensors are in memory, once: nothing of the file is mapped, so it may be written anew, cut or deleted after.

    Checksums are verified where the file has some: the sha256 of our own safetensors, the CRC-32 of what
    ``torch.save`` writes now. What it wrote before torch 1.6 has none, which is logged as a warning.

    Args:
        path: the file; its content, or the suffix ``.safetensors``, says which of the two it is.

    Raises:
        WeightsError: the file is missing, damaged, or holds more than tensors.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(path: str | Path) -> tuple[Any, dict[str, str]]:
    """Read a file as :func:`read_checkpoint`, and the metadata of a safetensors header (empty for other files).

    Args:
        path: the file.

    Raises:
        WeightsError: as :func:`read_checkpoint`.
    """
    path = Path(path)
    check_confined(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Train a model into it, or name another file.")
    return _read_safetensors(path) if _is_safetensors(path) else (_read_torch(path), {})


def write_safetensors(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: str | Path) -> None:
    """Write tensors as safetensors, all of them or nothing; the same tensors and metadata give the same bytes.

    Args:
        state: the tensors by name; each keeps its dtype.
        metadata: what the header says of them; ``format``, ``sha256`` (of the tensors' bytes) and ``sha256_header``
            (of their names, types, shapes and places, and the other metadata) are added.
        path: the file; its folder is made if it is not there.
    """
    # copies: the library refuses tensors that share memory
    blob = memoryview(save({key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}))
    start = HEADER + int.from_bytes(blob[:HEADER], "little")
    stamped = {**metadata, "format": "pt", TENSORS_SUM: hashlib.sha256(blob[start:]).hexdigest()}
    # the library writes the metadata in another order each time
    entries = {key: value for key, value in json.loads(bytes(blob[HEADER:start])).items() if key != "__metadata__"}
    stamped[HEADER_SUM] = header_sha256(entries, stamped)
    header = json.dumps({"__metadata__": dict(sorted(stamped.items())), **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER)  # the tensors stay aligned
    with replacing(path, "wb") as file:
        file.write(len(header).to_bytes(HEADER, "little") + header)
        file.write(blob[start:])


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Return whether a file's sums are ours, and so were verified; another project's ``sha256`` may be of anything.

    Args:
        metadata: what :func:`read_with_metadata` returned of the file.
    """
    return HEADER_SUM in metadata


def key_names(path: str | Path) -> list[str]:
    """List the names of the tensors in a file; of safetensors only the header is read, and nothing is verified.

    Args:
        path: as for :func:`read_checkpoint`.

    Raises:
        WeightsError: as :func:`read_checkpoint`, or not a state dict.
    """
    path = Path(path)
    check_confined(path)
    if not path.is_file() or not _is_safetensors(path):
        return list(as_state_dict(read_checkpoint(path), path))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return list(file.keys())
    except Exception as error:  # the library raises its own errors and Python's
        raise _unreadable(path, error) from error


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(HEADER + 1)
    except OSError:
        head = b""  # the reader will say why it cannot be opened
    stamped = head[HEADER:] == b"{" and int.from_bytes(head[:HEADER], "little") < path.stat().st_size
    return stamped or path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu"):  # the header is sound, or it raises
            pass
        with path.open("rb") as raw:
            state, metadata, sums = tensors_in(raw)
    except Exception as error:  # the library raises its own errors, Python's and torch's
        raise _unreadable(path, error) from error
    if is_ours(metadata):
        for key, part in ((HEADER_SUM, "header"), (TENSORS_SUM, "tensors")):
            if metadata.get(key, sums[key]) != sums[key]:
                raise WeightsError(
                    f"{path}: damaged, the sha256 of its {part} is not the one that its header has. "
                    "Fetch the file again."
                )
    return state, metadata


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path}: not a readable safetensors file ({type(error).__name__}: {error}). It may be cut off, or of "
        "another format. Fetch the file again, or name another."
    )


def _read_torch(path: Path) -> Any:
    try:
        # torch does not check the archive's checksums: a flipped bit would load as another weight
        archive = zipfile.is_zipfile(path)
        damaged = zipfile.ZipFile(path).testzip() if archive else None
        with torch.serialization.safe_globals(_NUMBERS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise WeightsError(
            f"{path}: not a readable state dict ({type(error).__name__}). It may be cut off, or hold more than "
            "tensors, which is never loaded. Save network.state_dict() alone, or fetch the file again."
        ) from error
    if damaged is not None:
        raise WeightsError(f"{path}: damaged, the checksum of {damaged} is wrong. Fetch the file again.")
    if not archive:
        logger.warning("%s: torch's format before 1.6, without checksums: damage would not show. Save it anew.", path)
    return state


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict into a network, all of it or nothing.

    Args:
        network: the network that the weights were made with, wrapped or not; it keeps its device and dtype.
        path: a file that ``torch.save(network.state_dict(), path)`` wrote, or the same tensors as safetensors.

    Returns:
        ``network``.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors, or fits another architecture; the
            message names keys and shapes that differ. The network is unchanged then.
    """
    return load_state(network, read_checkpoint(path), path)


def as_state_dict(state: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """Return what was read, after a check that it is a state dict.

    Args:
        state: what a file held.
        path: the file, for messages.

    Raises:
        WeightsError: not a dict of tensors alone.
    """
    beside = [key for key, v in state.items() if not isinstance(v, torch.Tensor)] if isinstance(state, dict) else []
    if isinstance(state, dict) and not beside:
        return state
    if 0 < len(beside) < len(state) and not any(isinstance(state[key], Mapping) for key in beside):
        shown = ", ".join(f"{key!r} ({type(state[key]).__name__})" for key in beside[:5])
        raise WeightsError(
            f"{path}: not a state dict of tensors: it also has {shown}. Take those entries out, and save the rest."
        )
    raise WeightsError(
        f"{path}: not a state dict of tensors. Save network.state_dict() alone; of a training's folder, where "
        "last.pt holds the optimizer, too, take model.pt or encoder.safetensors."
    )


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
    expected, tensors = plain_state_dict(network), as_state_dict(state, path)
    plain = without_wrappers(tensors)
    tensors = plain if plain.keys() == expected.keys() else tensors
    refuse_differences(expected, tensors, path, type(unwrap_network(network)).__name__)
    load_plain_state_dict(network, tensors)
    return network


def without_wrappers(state: dict[str, StateT]) -> dict[str, StateT]:
    """Remove the prefix that DataParallel, ``torch.compile`` or FSDP put before all names of a state dict.

    Args:
        state: what was read; it comes back as it is where some names lack such a prefix.
    """
    for prefix in WRAPPER_PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return without_wrappers({key.removeprefix(prefix): value for key, value in state.items()})
    return state


def refuse_differences(
    expected: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    path: str | Path,
    name: str,
    advice: str = "",
) -> None:
    """Refuse a state dict whose names, shapes or kinds of numbers are not those of the network.

    Kinds are real, complex, whole and boolean; real numbers may be of another precision.

    Args:
        expected: the network's own state dict.
        tensors: the file's.
        path: the file, for messages.
        name: what the weights are for.
        advice: what to do, if more than building the network anew can be said.

    Raises:
        WeightsError: they differ; the message names the first five differences.
    """
    differences = _differences(expected, tensors) or unlike_kinds(expected, tensors)
    if not differences:
        return
    shown = "; ".join(differences[:5])
    more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
    advice = _on_prefix(expected, tensors) or advice
    advice = advice or "Build the network with the options that the weights were trained with."
    raise WeightsError(f"{path}: weights of another architecture than {name}: {shown}{more}. {advice}")


def _on_prefix(expected: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """Advise on names that differ only by a prefix of all of them, in the file or in the network."""
    for longer, shorter, side in ((tensors, expected, "the file's"), (expected, tensors, "the network's")):
        first = next(iter(shorter), None)
        prefixes = [key[: -len(first)] for key in longer if first and key.endswith(f".{first}")]
        for prefix in prefixes:
            if all(f"{prefix}{key}" in longer for key in shorter):
                return f"All of {side} names have {prefix!r} before them: take it off, or load the part of that name."
    return ""


def _differences(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    missing = [f"{key} is missing" for key in expected if key not in tensors]
    return shapes + missing + [f"{key} is not known" for key in tensors if key not in expected]


def unlike_kinds(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Name the tensors whose numbers copying would change: integers (of quantised weights) or complex ones.

    Args:
        expected: the network's own state dict.
        tensors: the file's; names that only one of the two has are left out.
    """
    both = [(key, value.dtype, tensors[key].dtype) for key, value in expected.items() if key in tensors]
    return [
        f"{key} is {str(came).removeprefix('torch.')}, expected {str(needed).removeprefix('torch.')}"
        for key, needed, came in both
        if _kind(came) != _kind(needed)
    ]


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex or dtype.is_floating_point:
        return "complex" if dtype.is_complex else "real"
    return "boolean" if dtype == torch.bool else "whole"
