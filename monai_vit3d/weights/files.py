"""Reading checkpoints, never anything but tensors, and writing safetensors."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from ..data.errors import WeightsError
from ..data.files import replacing

_HEADER = 8  # bytes that say how long a safetensors file's header is
_DTYPES = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn},
    **{"U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "F8_E5M2": torch.float8_e5m2},
    **{"U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64},
}
_CHUNK = 1 << 20  # bytes that are read, and added to the sum, at a time


def read_checkpoint(path: str | Path) -> Any:
    """What ``torch.save`` wrote, as long as it is tensors and plain containers, or the tensors of a safetensors file.

    The tensors are in memory, once: nothing of the file is mapped, so it may be written anew, cut or deleted after.

    Args:
        path: the file; its content, or the suffix ``.safetensors``, says which of the two it is.

    Raises:
        WeightsError: the file is missing, damaged (checksums are verified), or holds more than tensors.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(path: str | Path) -> tuple[Any, dict[str, str]]:
    """As :func:`read_checkpoint`, and the metadata of a safetensors file's header; nothing for other files.

    Args:
        path: the file.

    Raises:
        WeightsError: as :func:`read_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Train a model into it, or name another file.")
    return _read_safetensors(path) if _is_safetensors(path) else (_read_torch(path), {})


def write_safetensors(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: str | Path) -> None:
    """Write tensors as safetensors, all of them or nothing; the same tensors and metadata give the same bytes.

    Args:
        state: the tensors by name; each keeps its dtype.
        metadata: what the header says of them; ``format`` and ``sha256``, of the tensors' bytes, are added.
        path: the file; its folder is made if it is not there.
    """
    # copies: the library refuses tensors that share memory
    blob = memoryview(save({key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}))
    start = _HEADER + int.from_bytes(blob[:_HEADER], "little")
    said = {**metadata, "format": "pt", "sha256": hashlib.sha256(blob[start:]).hexdigest()}
    # the library writes the metadata in another order each time
    entries = {key: value for key, value in json.loads(bytes(blob[_HEADER:start])).items() if key != "__metadata__"}
    header = json.dumps({"__metadata__": dict(sorted(said.items())), **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _HEADER)  # the tensors stay aligned
    with replacing(path, "wb") as file:
        file.write(len(header).to_bytes(_HEADER, "little") + header)
        file.write(blob[start:])


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER + 1)
    except OSError:
        head = b""  # the reader will say why it cannot be opened
    said = head[_HEADER:] == b"{" and int.from_bytes(head[:_HEADER], "little") < path.stat().st_size
    return said or path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # the header is sound, or it raises
            metadata = dict(file.metadata() or {})
        with path.open("rb") as raw:
            state, digest = _tensors_in(raw)
    except Exception as error:  # the library raises its own errors, Python's and torch's
        raise WeightsError(
            f"{path}: not a readable safetensors file ({type(error).__name__}: {error}). It may be cut off, or of "
            "another format. Fetch the file again, or name another."
        ) from error
    if "sha256" in metadata and metadata["sha256"] != digest:
        raise WeightsError(
            f"{path}: damaged, the sha256 of its tensors is not the one that its header has. Fetch the file again."
        )
    return state, metadata


def _tensors_in(file: BinaryIO) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of a safetensors file whose header is sound, and their sha256, from one reading.

    The library maps the file into memory, and a map would show what is written to the file later, or end the process
    if the file is cut; so each tensor gets memory of its own.
    """
    header = json.loads(file.read(int.from_bytes(file.read(_HEADER), "little")))
    header.pop("__metadata__", None)
    state, digest = {}, hashlib.sha256()
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):  # that is without holes
        state[key] = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        memory = memoryview(state[key].reshape(-1).view(torch.uint8).numpy())
        for start in range(0, len(memory), _CHUNK):
            part = memory[start : start + _CHUNK]
            if file.readinto(part) != len(part):
                raise EOFError(f"{key} ends too early")
            digest.update(part)
    return state, digest.hexdigest()


def _read_torch(path: Path) -> Any:
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
        path: a file that ``torch.save(network.state_dict(), path)`` wrote, or the same tensors as safetensors.

    Returns:
        ``network``.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors, or fits another architecture; the
            message names keys and shapes that differ. The network is unchanged then.
    """
    return load_state(network, read_checkpoint(path), path)


def as_state_dict(state: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """What was read, if it is a state dict.

    Args:
        state: what a file held.
        path: the file, for messages.

    Raises:
        WeightsError: not a dict of tensors alone.
    """
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(
            f"{path}: not a state dict of tensors. Save network.state_dict() alone; of a training's folder, where "
            "last.pt holds the optimizer, too, take model.pt or encoder.safetensors."
        )
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
    refuse_differences(network.state_dict(), as_state_dict(state, path), path, type(network).__name__)
    network.load_state_dict(state)
    return network


def refuse_differences(
    wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], path: str | Path, name: str, advice: str = ""
) -> None:
    """Refuse a state dict whose names or shapes are not those that are needed.

    Args:
        wanted: the network's own state dict.
        found: the file's.
        path: the file, for messages.
        name: what the weights are for.
        advice: what to do, if more than building the network anew can be said.

    Raises:
        WeightsError: they differ; the message names the first five differences.
    """
    differences = _differences(wanted, found)
    if not differences:
        return
    shown = "; ".join(differences[:5])
    more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
    advice = advice or "Build the network with the options that the weights were trained with."
    raise WeightsError(f"{path}: weights of another architecture than {name}: {shown}{more}. {advice}")


def _differences(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    shapes = [
        f"{key} is {tuple(found[key].shape)}, {tuple(value.shape)} is needed"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    missing = [f"{key} is missing" for key in wanted if key not in found]
    return shapes + missing + [f"{key} is not known" for key in found if key not in wanted]
