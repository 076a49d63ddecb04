"""Whole networks in folders and on Hugging Face's hub: config.json, model.safetensors and README.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from torch import nn

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.data.files import replacing

from .checkpoints import as_state_dict, read_with_metadata, write_safetensors
from .layer_facts import unlike_layers
from .lora import merged_lora
from .model_args import BACKBONE, NETWORK_CLASSES, RECORD, build_network, class_of, model_args
from .recorded import CONFIG, WEIGHTS, build_own, build_whole, files_in, recorded_args
from .weights_licence import LICENCE_KEY, licence_metadata, set_weights_licence, weights_licence

N = TypeVar("N", bound=nn.Module)
CARD = "README.md"
_MARK = (
    "<!-- written by monai_vit3d {}: written anew by the next save_pretrained, unless somebody changes this page -->"
)
_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def save_network(
    network: nn.Module,
    folder: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    unknown: Collection[str] = (),
) -> None:
    """Write config.json, model.safetensors and README.md, all of them or nothing.

    A README.md that is there stays if people wrote or changed it; one that this function wrote is written anew.

    Every file is written beside its place and moved there at the end, config.json last: a folder is the old one, the
    new one, or refused by :func:`load_pretrained`.

    Args:
        network: the network; its head is written, too. Adapters are written merged; the network keeps them.
        folder: where to; made if it is not there.
        card: ``license`` and ``tags`` for :func:`model_card`.
        unknown: arguments that nobody takes.

    Raises:
        UsageError: a network that :func:`build_network` could not build again, arguments that nobody takes, or a
            file where the folder should be.
    """
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: for the upload alone. Leave them out, or pass push_to_hub=True.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file; expected a folder. Name another place.")
    network = merged_lora(network)
    args = model_args(network)
    _refuse_unnamed(network, args)
    new = not folder.exists()
    readme = None if _is_somebodys(folder / CARD) else str(model_card(network, **(card or {})))
    try:
        with replacing(folder / CONFIG, "w", encoding="utf-8") as file:
            file.write(json.dumps(args, indent=2, sort_keys=True) + "\n")
            metadata = {RECORD: json.dumps(args, sort_keys=True), **licence_metadata(network)}
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


def _refuse_unnamed(network: nn.Module, args: dict[str, Any]) -> None:
    """Refuse a network that its recorded arguments do not build."""
    advice = "Write it with save_backbone, and load that with load_backbone into a network that you build yourself."
    try:
        with torch.device("meta"):
            again = build_network(args, type(network))
    except WeightsError as error:
        raise UsageError(f"config.json could not say what this network is: {error}. {advice}") from error
    unlike = unlike_layers(network, again)
    if unlike:
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        raise UsageError(
            f"config.json could not say what this network is: {', '.join(unlike[:3])}{more} would not be built as "
            f"they are. {advice}"
        )


def _is_somebodys(page: Path) -> bool:
    """Return whether people wrote a page, or changed what :func:`model_card` wrote."""
    if not page.exists():
        return False
    text, _, mark = page.read_bytes().decode(errors="replace").replace("\r\n", "\n").rstrip().rpartition("\n")
    return mark != _mark(text)


def _mark(text: str) -> str:
    """Return the last line of a page of ours: its hash, by which a changed page is recognised."""
    return _MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def load_pretrained(
    source: str | Path,
    *,
    factory: type[N],
    **options: Any,
) -> N:
    """Load the network in a folder of :func:`save_network`, a repository of the hub, or a file with its arguments.

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
    read, metadata = read_with_metadata(weights)
    state = as_state_dict(read, weights)
    args = recorded_args(state, metadata, config, weights)
    kind = class_of(args)
    if not issubclass(factory, NETWORK_CLASSES[kind]):
        raise UsageError(f"{source}: a {kind}, not a {factory.__name__}. Load it with {kind}.from_pretrained.")
    network: Any
    if kind != BACKBONE:
        network = build_whole(args, state, str(weights), factory, **options)
    else:
        network = build_own(args, state, str(weights), factory, owned=True, **options).network  # type: ignore[arg-type]
    set_weights_licence(network, metadata.get(LICENCE_KEY))
    return network


def _find(source: str | Path, hub: dict[str, Any]) -> tuple[Path, Path]:
    """Return the paths of config.json and of the weights, fetched from the hub unless ``source`` is local."""
    if Path(source).is_file():
        return Path(source), Path(source)
    if Path(source).is_dir():
        return files_in(Path(source))
    try:
        paths = [Path(hf_hub_download(str(source), name, **hub)) for name in (CONFIG, WEIGHTS)]
    except Exception as error:  # the library raises its own errors, Python's and those of its HTTP client
        first = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{source}: no such folder, and the hub did not give it as a repository ({type(error).__name__}: {first}). "
            "Name a folder that save_pretrained wrote, or a repository's owner/name."
        ) from error
    return paths[0], paths[1]


def model_card(network: Any, license: str | None = None, tags: Collection[str] = ()) -> ModelCard:
    """Write the text of a model card, for people and the hub's search, from the arguments in config.json.

    Args:
        network: what it is about.
        license: of the weights, by the hub's word for it, as ``"apache-2.0"``; None takes the one that they came with.
        tags: more of them.
    """
    license = license or weights_licence(network)
    args = model_args(network)
    card_data = cast(Any, network)._hub_mixin_info.model_card_data.to_dict()
    encoder = args.get("backbone") or args
    card_data["tags"] = sorted({*card_data.get("tags", ()), *tags})
    task = "image-segmentation" if "decoder" in args else "image-classification"
    task = task if args["num_classes"] > 0 else "image-feature-extraction"
    data = ModelCardData(**{"pipeline_tag": task, **card_data, **({} if license is None else {"license": license})})
    count = sum(parameter.numel() for parameter in network.parameters())
    rows = "\n".join(f"| `{key}` | `{json.dumps(value)}` |" for key, value in sorted(args.items()))
    kind = class_of(args)
    size = ", ".join(str(n) for n in (encoder["in_chans"], *encoder["img_size"]))
    page = (
        f"---\n{data.to_yaml()}\n---\n\n# {args['class']}\n\n"
        f"A 3D Vision Transformer of `monai_vit3d` with {count:,} parameters.\n\n"
        f"```python\nimport torch\nfrom monai_vit3d import {kind}\n\n"
        f'network = {kind}.from_pretrained("FOLDER or OWNER/NAME")\n'
        f"output = network(torch.zeros(1, {size}, dtype=next(network.parameters()).dtype))\n```\n\n"
        "Nothing is known here of the data that the weights were trained on, nor of what they are fit for.\n\n"
        f"## Architecture\n\n| option | value |\n|---|---|\n{rows}\n"
    )
    text = str(ModelCard(page))  # as it will stand in the file
    return ModelCard(f"{text}\n{_mark(text)}\n")
