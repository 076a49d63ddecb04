"""Read a safetensors file in one pass: its tensors, its metadata, and the hashes of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BufferedReader
from typing import Any

import torch

TENSORS_SUM, HEADER_SUM = "sha256", "sha256_header"
HEADER = 8  # bytes that say how long a safetensors file's header is
_DTYPES = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn},
    **{"U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "F8_E5M2": torch.float8_e5m2},
    **{"U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64},
}
_CHUNK = 1 << 20  # bytes that are read, and added to the sum, at a time


def tensors_in(file: BufferedReader) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file with a sound header, and hash both in the same pass.

    The library maps the file into memory, and a map would show what is written to the file later, or end the process
    if the file is cut; so each tensor gets memory of its own.

    Args:
        file: at its beginning.

    Returns:
        The tensors by name, the metadata, and both sums by the keys that the metadata has for them.
    """
    header = json.loads(file.read(int.from_bytes(file.read(HEADER), "little")))
    metadata = dict(header.pop("__metadata__", None) or {})
    state, digest = {}, hashlib.sha256()
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):  # that is without holes
        state[key] = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        memory = memoryview(state[key].reshape(-1).view(torch.uint8).numpy().data)
        for start in range(0, len(memory), _CHUNK):
            part = memory[start : start + _CHUNK]
            if file.readinto(part) != len(part):
                raise EOFError(f"{key} ends too early")
            digest.update(part)
    sums = {TENSORS_SUM: digest.hexdigest(), HEADER_SUM: header_sha256(header, metadata)}
    return state, metadata, sums


def header_sha256(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Hash a header: the tensors' entries and the metadata, without the hash itself.

    Args:
        entries: of the tensors, by name: type, shape and place.
        metadata: the rest.
    """
    pairs = sorted((key, value) for key, value in metadata.items() if key != HEADER_SUM)
    tensors = [(key, entry["dtype"], entry["shape"], entry["data_offsets"]) for key, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor[3], tensor[0]))
    return hashlib.sha256(json.dumps([pairs, tensors]).encode()).hexdigest()
