"""Whole networks in folders and on Hugging Face's hub: config.json, model.safetensors and README.md."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from torch import Tensor

from ..data.errors import UsageError, WeightsError
from ..data.files import replacing
from ..layers import sincos_pos_embed
from ..networks import VisionTransformer3D
from ..networks.architecture import architecture, build_backbone, unlike_layers
from ..networks.options import resolve_pool
from .files import as_state_dict, read_with_metadata, refuse_differences, write_safetensors
from .inflate import adapt_channels

logger = logging.getLogger(__name__)

N = TypeVar("N", bound=VisionTransformer3D)
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_SIZES, _HEAD, _PLACE = ("img_size", "patch_size"), ("num_classes", "global_pool"), ("device", "dtype")
# what may be told anew when weights are loaded, besides those
_FREE = ("class", "foreign", "in_chans", "dynamic_img_size", "dynamic_img_pad", "pool_include_prefix")
_FETCH = "Fetch the files again, or save the network anew with save_pretrained."


def save_network(
    network: VisionTransformer3D,
    folder: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    unknown: Collection[str] = (),
) -> None:
    """Write config.json, model.safetensors and README.md, all of them or nothing; a README.md that is there stays.

    Every file is written beside its place and moved there at the end, config.json last: a folder is the old one, the
    new one, or refused by :func:`load_pretrained`.

    Args:
        network: the network; its head is written, too.
        folder: where to; made if it is not there.
        card: ``license`` and ``tags`` for :func:`model_card`.
        unknown: arguments that nobody takes.

    Raises:
        UsageError: a network that :func:`build_backbone` could not build again, arguments that nobody takes, or a
            file where the folder should be.
    """
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: for the upload alone. Leave them out, or pass push_to_hub=True.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file; a folder is needed. Name another place.")
    said = architecture(network)
    _refuse_unnamed(network, said)
    new = not folder.exists()
    readme = None if (folder / CARD).exists() else str(model_card(network, **(card or {})))
    try:
        with replacing(folder / CONFIG, "w", encoding="utf-8") as file:
            file.write(json.dumps(said, indent=2, sort_keys=True) + "\n")
            metadata = {"architecture": json.dumps(said, sort_keys=True)}
            if readme is None:
                write_safetensors(network.state_dict(), metadata, folder / WEIGHTS)
            else:
                with replacing(folder / CARD, "w", encoding="utf-8") as page:
                    page.write(readme)
                    write_safetensors(network.state_dict(), metadata, folder / WEIGHTS)
    except BaseException:
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _refuse_unnamed(network: VisionTransformer3D, said: dict[str, Any]) -> None:
    """Refuse a network that its architecture does not describe."""
    advice = "Write it with save_backbone, and load that with load_backbone into a network that you build yourself."
    try:
        again = build_backbone(said, type(network), device="meta")
    except WeightsError as error:
        raise UsageError(f"config.json could not say what this network is: {error}. {advice}") from error
    unlike = unlike_layers(network, again)
    if unlike:
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        raise UsageError(
            f"config.json could not say what this network is: {', '.join(unlike[:3])}{more} would not be built as "
            f"they are. {advice}"
        )


def load_pretrained(
    source: str | Path,
    *,
    factory: type[N] = VisionTransformer3D,
    **options: Any,  # type: ignore[assignment]
) -> N:
    """The network in a folder of :func:`save_network`, in a file of ``save_backbone``, or in a repository of the hub.

    Args:
        source: the folder, a file of ``save_backbone``, or ``"owner/name"``.
        factory: the class to build.
        options: as for :meth:`VisionTransformer3D.from_pretrained`.

    Returns:
        The network, in evaluation mode; its tensors keep the type that they have in the file.

    Raises:
        WeightsError: nothing there, or files that are cut off, altered, or of two architectures.
        UsageError: options that would change what the weights compute.
    """
    config, weights = _find(source, {key: options.pop(key) for key in _HUB if key in options})
    sizes, head, place = ({key: options.pop(key) for key in keys if key in options} for keys in (_SIZES, _HEAD, _PLACE))
    said, state = read_pair(config, weights)
    network = _build(said, state, factory, options, config)
    _adapt(network, state)
    refuse_differences(network.state_dict(), state, weights, str(config), _FETCH)
    network = _filled(network, state, said, factory, options)
    if sizes:
        network.set_input_size(**sizes)
    new = _new_head(network, **head)
    network.to(**place)
    logger.info("%s: loaded %d tensors%s", weights, len(network.state_dict()), ", the head is new" if new else "")
    return network.eval()


def read_pair(config: str | Path, weights: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An architecture and its tensors, read and verified; nothing is built.

    Args:
        config: the path of a config.json, or that of the weights, whose header says it, too.
        weights: the path of the safetensors file.

    Raises:
        WeightsError: a file is missing, damaged, or of another architecture than the other.
    """
    read, metadata = read_with_metadata(weights)
    return _said(metadata, Path(config), Path(weights)), as_state_dict(read, weights)


def _find(source: str | Path, hub: dict[str, Any]) -> tuple[Path, Path]:
    """config.json and model.safetensors, fetched if ``source`` is neither a folder nor a file, which is both."""
    if Path(source).is_file():
        return Path(source), Path(source)
    if Path(source).is_dir():
        files = [Path(source) / name for name in (CONFIG, WEIGHTS)]
        for file in files:
            if not file.is_file():
                raise WeightsError(f"{file}: no such file. Name a folder that save_pretrained wrote.")
        return files[0], files[1]
    try:
        paths = [Path(hf_hub_download(str(source), name, **hub)) for name in (CONFIG, WEIGHTS)]
    except Exception as error:  # the library raises its own errors, Python's and those of its HTTP client
        first = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{source}: no such folder, and the hub did not give it as a repository ({type(error).__name__}: {first}). "
            "Name a folder that save_pretrained wrote, or a repository's owner/name."
        ) from error
    return paths[0], paths[1]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON ({type(error).__name__}); it may be cut off. {_FETCH}") from error
    if not isinstance(said, dict):
        raise WeightsError(f"{path}: a JSON {type(said).__name__}; an object is needed. {_FETCH}")
    return said


def _said(metadata: dict[str, str], config: Path, weights: Path) -> dict[str, Any]:
    """The architecture that the header and config.json agree on."""
    if not {"architecture", "sha256"} <= set(metadata):
        raise WeightsError(
            f"{weights}: its header has no architecture and sha256, so it is not what save_pretrained wrote. For "
            "tensors alone build the network and use load_weights."
        )
    try:
        came = dict(json.loads(metadata["architecture"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{weights}: its header's architecture cannot be read. {_FETCH}") from error
    said = came if config == weights else _read_config(config)
    unlike = [key for key in sorted({*said, *came}) if key not in said or key not in came or said[key] != came[key]]
    if unlike:
        both = "; ".join(f"{key}: {said.get(key)!r} there, {came.get(key)!r} here" for key in unlike[:5])
        more = f"; and {len(unlike) - 5} more" if len(unlike) > 5 else ""
        raise WeightsError(f"{weights}: of another architecture than {config.name} says: {both}{more}. {_FETCH}")
    return said


def _build(
    said: dict[str, Any], state: dict[str, Tensor], factory: type[N], options: dict[str, Any], config: Path
) -> N:
    """The network without values, its options those of config.json but for what may be told anew."""
    counts = [said.get("depth"), dict(said.get("block_options") or {}).get("num_parallel")]
    if any(isinstance(count, (int, float)) and count > len(state) for count in counts):
        raise WeightsError(f"{config}: {counts[0]} blocks, but the weights are {len(state)} tensors. {_FETCH}")
    try:
        network = build_backbone(said, factory, **{**options, "device": "meta"})
    except WeightsError as error:
        raise WeightsError(f"{config}: {error}") from error
    now = architecture(network)
    changed = [key for key in now if key in said and key not in _FREE and now[key] != said[key]]
    if changed:
        both = "; ".join(f"{key}={said[key]!r} came, {now[key]!r} was asked for" for key in changed)
        raise UsageError(f"{config}: the weights would compute something else: {both}. Leave out what changes that.")
    return network  # type: ignore[return-value]


def _adapt(network: VisionTransformer3D, state: dict[str, Tensor]) -> None:
    """The first kernel for as many channels as the network has."""
    key = next((k for k in ("patch_embed.stem.0.weight", "patch_embed.proj.weight") if k in state), None)
    if key is not None and state[key].dim() == 5:
        state[key] = adapt_channels(state[key], int(network.in_chans))


def _filled(network: N, state: dict[str, Tensor], said: dict[str, Any], factory: type[N], options: dict[str, Any]) -> N:
    """The network with the tensors themselves as its parameters, so that there is never a second copy of all."""
    dtype = state["patch_embed.proj.weight"].dtype if "patch_embed.proj.weight" in state else None
    # a copy of one after the other: those of the file lie in its mapping, at odd addresses, and change with it
    own = {key: state.pop(key).clone() for key in list(state)}
    network.load_state_dict(own, assign=True)
    table = network.pos_embed
    if table is not None and table.is_meta:
        network.pos_embed = sincos_pos_embed(network.grid_size, int(network.embed_dim)).to(dtype)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        network = build_backbone(said, factory, dtype=dtype, **options)  # type: ignore[assignment]
        network.load_state_dict(own)  # a layer of the user's own with a buffer that no file holds
    return network


def _new_head(network: VisionTransformer3D, num_classes: int | None = None, global_pool: str | None = None) -> bool:
    """Give the network what head and pooling were asked for; whether the head is a new one."""
    pool = None if global_pool is None else resolve_pool(global_pool, network.has_class_token)
    classes, head = network.num_classes if num_classes is None else int(num_classes), network.head
    keep = classes == network.num_classes
    if not keep or pool not in (None, network.global_pool):
        network.reset_classifier(classes, pool)
        network.head = head if keep else network.head
    return not keep and classes > 0


def model_card(network: VisionTransformer3D, license: str | None = None, tags: Collection[str] = ()) -> ModelCard:
    """A page for people and the hub's search, from the same source as config.json.

    Args:
        network: what it is about.
        license: of the weights, by the hub's word for it, as ``"apache-2.0"``.
        tags: more of them.
    """
    said = architecture(network)
    known = network._hub_mixin_info.model_card_data.to_dict()
    known["tags"] = sorted({*known.get("tags", ()), *tags})
    task = "image-classification" if said["num_classes"] > 0 else "image-feature-extraction"
    data = ModelCardData(**{"pipeline_tag": task, **known, **({} if license is None else {"license": license})})
    count = sum(parameter.numel() for parameter in network.parameters())
    rows = "\n".join(f"| `{key}` | `{json.dumps(value)}` |" for key, value in sorted(said.items()))
    size = ", ".join(str(n) for n in (said["in_chans"], *said["img_size"]))
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {said['class']}\n\n"
        f"A 3D Vision Transformer of `monai_vit3d` with {count:,} parameters.\n\n"
        "```python\nimport torch\nfrom monai_vit3d import VisionTransformer3D\n\n"
        'network = VisionTransformer3D.from_pretrained("FOLDER or OWNER/NAME")\n'
        f"output = network(torch.zeros(1, {size}, dtype=next(network.parameters()).dtype))\n```\n\n"
        "Nothing is known here of the data that the weights were trained on, nor of what they are fit for.\n\n"
        f"## Architecture\n\n| option | value |\n|---|---|\n{rows}\n"
    )
