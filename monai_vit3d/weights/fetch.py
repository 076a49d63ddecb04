"""Weights of published models from Hugging Face's hub: licences accepted, revisions pinned, hashes verified."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.data.files import file_sha256
from monai_vit3d.data.published_models import PublishedModel, published_model, published_models
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.load_report import Inflated
from monai_vit3d.networks.weights_licence import set_weights_licence

from .backbone import save_backbone
from .convert.timm2d import create_timm2d
from .sources import backbone_from, read_source

logger = logging.getLogger(__name__)


class Pin(NamedTuple):
    """What fixes a file of the hub for good: the repository's commit, and the file's SHA-256."""

    revision: str
    sha256: str


def fetch_weights(
    model: str | PublishedModel, *, accept_licence: bool = False, cache_dir: str | Path | None = None
) -> Path:
    """Download the file of a published model into the hub's cache, or find it there.

    Args:
        model: the name of an entry, or an entry.
        accept_licence: whether its licence was read and is kept. It must be unless the weights may be used
            commercially.
        cache_dir: another cache of the hub than its own client's.

    Returns:
        The file, with the entry's SHA-256 where it has one.

    Raises:
        UsageError: an unknown name, or a licence that was not accepted.
        WeightsError: no file is known, it cannot be loaded here or be fetched, or it is another than the entry's.
    """
    entry = published_model(model) if isinstance(model, str) else model
    _refuse_licence(entry, accept_licence)
    if entry.unsupported:
        raise WeightsError(f"{entry.name}: {entry.unsupported}.")
    path = _download(entry, cache_dir)
    digest = file_sha256(path)
    if entry.sha256 is None:
        logger.warning(
            "%s: no SHA-256 is known of %s, so the file is taken as it came: %s", entry.name, entry.file, digest
        )
    elif digest != entry.sha256:
        raise WeightsError(
            f"{path}: SHA-256 {digest}, but {entry.name} is {entry.sha256}. It was damaged or exchanged: delete it and "
            "fetch it again; do not load it."
        )
    return path


def pin_weights(model: str | PublishedModel) -> Pin:
    """Return what pins the file of a published model, of its newest revision where the entry names none.

    Args:
        model: the name of an entry, or an entry.

    Raises:
        UsageError: an unknown name.
        WeightsError: no file is known, or it cannot be fetched.
    """
    entry = published_model(model) if isinstance(model, str) else model
    path = _download(entry)
    return Pin(_commit(path), file_sha256(path))


def load_published(
    model: str | PublishedModel,
    img_size: Any = None,
    patch_size: Any = None,
    *,
    path: str | Path | None = None,
    accept_licence: bool = False,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Inflated:
    """Build the backbone of a published model with its weights.

    Args:
        model: the name of an entry, or an entry.
        img_size: input size in ``(H, W, D)``; None is the entry's.
        patch_size: patch size in ``(H, W, D)``; None is the entry's or the file's.
        path: the file, where it lies already; None fetches it.
        accept_licence: as for :func:`fetch_weights`.
        cache_dir: as for :func:`fetch_weights`.
        options: keywords as for :func:`backbone_from` (of 2D models, :func:`create_timm2d`); they override the entry's.

    Returns:
        The network, its ``pretrained_cfg`` with licence and source; and what became of each tensor.

    Raises:
        UsageError: as :func:`fetch_weights`, or options that do not fit.
        WeightsError: as :func:`fetch_weights`, or a file that does not fit.
    """
    entry = published_model(model) if isinstance(model, str) else model
    if path is None:
        path = fetch_weights(entry, accept_licence=accept_licence, cache_dir=cache_dir)
    else:
        _refuse_licence(entry, accept_licence)
    sizes = {"img_size": img_size, "patch_size": patch_size}
    keywords = {**entry.options, **{key: size for key, size in sizes.items() if size is not None}, **options}
    loaded = (_from_timm if entry.family == "timm2d" else _from_source)(entry, path, keywords)
    describe_published(loaded.network, entry)
    return loaded


def create_published(
    name: str,
    img_size: Any = None,
    patch_size: Any = None,
    *,
    pretrained: Any = True,
    **options: Any,
) -> VisionTransformer3D:
    """Build the backbone of a published model; of its architecture nothing is known without its file.

    Args:
        name: of the entry.
        img_size: as for :func:`load_published`.
        patch_size: as for :func:`load_published`.
        pretrained: True, or the file's path.
        options: as for :func:`load_published`.

    Raises:
        UsageError: as :func:`load_published`, or neither True nor a path.
        WeightsError: as :func:`load_published`.
    """
    if pretrained is not True and not isinstance(pretrained, str | Path):
        raise UsageError(
            f"{name}: pretrained={pretrained!r}; the file says what the network is. Give True or the file's path; of "
            "an untrained network of your own sizes VisionTransformer3D."
        )
    path = None if pretrained is True else pretrained
    return load_published(name, img_size, patch_size, path=path, **options).network


def list_published() -> list[dict[str, Any]]:
    """Return what there is to choose from, a row a model: name, title, family, licence and what is known of the input.

    ``commercial`` and ``gated`` are None where it is not known; ``unstated`` has the fields of the recipe that its
    authors do not state, ``loads`` whether its file can be fetched by name and read here.
    """
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "licence": entry.licence.weights,
            "commercial": entry.licence.commercial,
            "gated": entry.licence.gated,
            "code_licence": entry.licence.code,
            "checked": entry.checked,
            "unstated": entry.unstated,
            "loads": entry.file is not None and not entry.unsupported,
            "repository": entry.repository,
        }
        for entry in published_models().values()
    ]


def get_weights(
    name: str, out: str | Path | None = None, *, accept_licence: bool = False, overwrite: bool = False
) -> Path:
    """Fetch all files of a published model, or write its backbone as a file of this package where ``out`` says.

    Args:
        name: of the entry.
        out: a ``.safetensors`` of :func:`save_backbone`, with the licence in its header; None writes none.
        accept_licence: as for :func:`fetch_weights`.
        overwrite: write anew what is there.

    Returns:
        ``out``, or the backbone's file in the hub's cache.

    Raises:
        UsageError: as :func:`fetch_weights`, or ``out`` is there already or has another suffix.
        WeightsError: as :func:`load_published`.
    """
    if out is None:
        combiner = published_model(name).combiner
        if combiner is not None:
            fetch_weights(combiner, accept_licence=accept_licence)
        return fetch_weights(name, accept_licence=accept_licence)
    out = Path(out)
    if out.suffix.lower() != ".safetensors" or (out.exists() and not overwrite):
        raise UsageError(f"{out}: expected a new file .safetensors. Name another, or pass overwrite=True.")
    save_backbone(load_published(name, accept_licence=accept_licence).network, out)
    return out


def describe_published(network: VisionTransformer3D, entry: PublishedModel) -> None:
    """Say in a network's ``pretrained_cfg`` which published model it is, and its licence."""
    if entry.input_size[0] == network.in_chans:
        network.pretrained_cfg |= entry.statistics
    network.pretrained_cfg |= {"architecture": entry.name, "hf_hub_id": entry.repository, "hf_hub_filename": entry.file}
    set_weights_licence(network, entry.licence.weights)


def _from_timm(entry: PublishedModel, path: str | Path, keywords: dict[str, Any]) -> Inflated:
    name = keywords.pop("timm_name")
    return create_timm2d(name, keywords.pop("img_size"), keywords.pop("patch_size"), pretrained=path, **keywords)


def _from_source(entry: PublishedModel, path: str | Path, keywords: dict[str, Any]) -> Inflated:
    source = read_source(path, take=entry.take or "teacher", family=entry.family)
    return backbone_from(source, **keywords)


def _refuse_licence(entry: PublishedModel, accepted: bool) -> None:
    if accepted or entry.licence.commercial:
        return
    use = "not for commercial use" if entry.licence.commercial is False else "commercial use is not known to be allowed"
    raise UsageError(
        f"{entry.name}: its weights' licence is {entry.licence.weights}, {use}. Read it at "
        f"https://huggingface.co/{entry.repository}, and pass accept_licence=True if you keep to it."
    )


def _download(entry: PublishedModel, cache_dir: str | Path | None = None) -> Path:
    where = f"https://huggingface.co/{entry.repository}"
    if entry.file is None:
        raise WeightsError(
            f"{entry.name}: its file's name in {where} is not known here. Download it, and give its path instead."
        )
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it warns of each of its tries; the last one is the error below
    try:
        return Path(hf_hub_download(entry.repository, entry.file, revision=entry.revision, cache_dir=cache_dir))
    except Exception as error:  # the library raises its own errors, Python's and those of its HTTP client
        first = str(error).strip().split("\n")[0]
        gated = " The hub asks for a request first: make it there, then log in with `hf auth login`."
        raise WeightsError(
            f"{entry.name}: {entry.file} of {where} is neither in the hub's cache nor could it be fetched "
            f"({type(error).__name__}: {first}). Connect to the network, or copy a cache that has it to HF_HOME."
            f"{gated if entry.licence.gated else ''}"
        ) from error
    finally:
        hub.setLevel(level)


def _commit(path: Path) -> str:
    """Return the commit of a file in the hub's cache: ``…/snapshots/COMMIT/FILE``."""
    return path.parts[len(path.parts) - path.parts[::-1].index("snapshots")]
