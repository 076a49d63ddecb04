"""Save and load adapters: what fine-tuning changed, without the frozen weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.networks.checkpoints import as_state_dict, read_with_metadata, refuse_differences, write_safetensors
from monai_vit3d.networks.lora import ADAPTER, LoraSettings, adapter_layers, apply_lora, refuse_adapters
from monai_vit3d.networks.wrappers import unwrap_network

_LORA = (".lora_A.", ".lora_B.")


def save_adapter(network: nn.Module, path: str | Path) -> None:
    """Write the adapters of a network, the parts that are trained beside them, and all buffers, as safetensors.

    The header's metadata has the settings (``lora``, JSON), the sha256 of the frozen weights (``base_sha256``), and
    that of the tensors, as all our files.

    Args:
        network: what :func:`apply_lora` returned, wrapped or not.
        path: the file, ``.safetensors``; its folder is made if it is not there.

    Raises:
        UsageError: a network without adapters.
    """
    network = unwrap_network(network)
    settings = getattr(network, "lora", None)
    none = not any(word in key for key in network.state_dict() for word in _LORA)  # or a part was merged alone
    if none or not isinstance(settings, LoraSettings):
        raise UsageError(f"{type(network).__name__} has no adapters to save: call apply_lora first.")
    ours, base = _split(network, settings.trained)
    header = {"lora": json.dumps(asdict(settings), sort_keys=True), "base_sha256": _sha256(base)}
    write_safetensors(ours, header, path)


def load_adapter(network: nn.Module, path: str | Path, strict: bool = True) -> nn.Module:
    """Give a network the adapters in a file, and the weights of the parts that were trained beside them.

    Args:
        network: the network without adapters, with the weights that the adapters were trained on. It is changed in
            place, as by :func:`apply_lora`.
        path: a file of :func:`save_adapter`.
        strict: refuse frozen weights that are not, bit for bit, those that the adapters were trained on.

    Returns:
        ``network``.

    Raises:
        WeightsError: the file is missing, damaged, no adapter's, of another architecture, or of other frozen weights.
        UsageError: the network has adapters already, or is wrapped. It is unchanged in either case.
    """
    refuse_adapters(network)
    read, metadata = read_with_metadata(path)
    settings, state = _settings(metadata, path), as_state_dict(read, path)
    refuse_differences(_wanted(network, settings, path), state, path, f"the adapters of {type(network).__name__}")
    if strict and metadata.get("base_sha256") != _sha256(_split(network, settings.trained)[1]):
        raise WeightsError(
            f"{path}: its adapters were trained on other frozen weights than this {type(network).__name__} has. Load "
            "those first (load_backbone, load_weights), or pass strict=False to put them on these."
        )
    options = {key: value for key, value in vars(settings).items() if key != "rank"}
    apply_lora(network, settings.rank, **options)
    adapters = {key: state[_name(key)] for key in network.state_dict() if _name(key) in state}
    network.load_state_dict(adapters, strict=False)
    return network


def _split(network: nn.Module, trained: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a network's tensors into those that training may change and the others, by names without peft's additions.

    Buffers are among the first: running statistics follow the data in frozen parts, too.
    """
    buffers = {name for name, _ in network.named_buffers()}
    ours: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        name = _name(key)
        named = any(f"{key}.".startswith(f"{part}.") for part in trained)
        (ours if named or key in buffers or any(word in key for word in _LORA) else base)[name] = value
    return ours, base


def _name(key: str) -> str:
    """Return a name in the state dict without what peft adds to it."""
    for word in _LORA:
        key = key.replace(f"{word}{ADAPTER}.", word)
    return key.replace(".base_layer.", ".")


def _sha256(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(metadata: dict[str, str], path: str | Path) -> LoraSettings:
    try:
        header = json.loads(metadata["lora"])
        header |= {key: tuple(map(str, header[key])) for key in ("targets", "trained")}
        return LoraSettings(**header)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: no adapter's file, its header has no readable 'lora'. Name a file that save_adapter wrote; "
            "load_weights and load_backbone read whole networks."
        ) from error


def _wanted(network: nn.Module, settings: LoraSettings, path: str | Path) -> dict[str, Tensor]:
    """Return the names and shapes that a file with these settings must have for this network."""
    expected = _split(network, settings.trained)[0]
    try:
        for name, layer in adapter_layers(network, settings.targets, settings.trained).items():
            expected[f"{name}.lora_A.weight"] = torch.empty(settings.rank, layer.in_features, device="meta")
            expected[f"{name}.lora_B.weight"] = torch.empty(layer.out_features, settings.rank, device="meta")
    except UsageError as error:
        raise WeightsError(f"{path}: adapters that do not fit {type(network).__name__}: {error}") from error
    return expected
