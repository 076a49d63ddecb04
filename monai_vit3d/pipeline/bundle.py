"""A MONAI bundle's inference config, as the parts that one volume goes through."""

from __future__ import annotations

import copy
import gc
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.errors import BundleError, UsageError, Vit3dError, WeightsError
from ..data.files import file_sha256
from .metadata import Metadata, read_metadata
from .own_code import let_import, python_files

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser
    from monai.transforms import Transform

    from .postprocessing import Postprocessing
    from .value_names import ValueNames

_ROOTS = ("network", "network_def", "preprocessing", "inferer", "postprocessing")
_VALUES = ("ckpt_path", "class_names", "task", "flip_axes", "evaluator::amp")


@dataclass(eq=False)
class Bundle:
    """The parts of a bundle's inference config, built, with the weights in the network.

    Args:
        metadata: what the bundle says of itself.
        network: in evaluation mode, on ``device``.
        preprocessing: transforms from a file to the network's input, one after another.
        inferer: how the network runs over an input.
        postprocessing: what the transforms from the network's output to the answer mean.
        image_key: what the transforms call the image.
        weights: the checkpoint.
        weights_sha256: of the checkpoint.
        config_sha256: of the bundle's ``configs`` and Python files, on any of which an answer may depend.
        class_names: of a classifier's classes; empty for segmentation.
        task: of a classifier.
        autocast: whether the config asks for mixed precision.
        flip_axes: axes of the network's input along which it was trained with flips; the config's ``flip_axes``.
        backend: what runs the network, with its version where that is not PyTorch itself.
        bf16: whether the network was told to compute in bfloat16, whatever the config says.
    """

    metadata: Metadata
    network: torch.nn.Module
    preprocessing: list[Transform]
    inferer: Callable[..., Any]
    postprocessing: Postprocessing
    image_key: str
    device: torch.device
    weights: Path
    weights_sha256: str
    config_sha256: str
    class_names: list[str]
    task: str
    autocast: bool
    flip_axes: tuple[int, ...] = ()
    backend: str = "torch"
    bf16: bool = False
    _value_names: dict[int, ValueNames] = field(default_factory=dict, init=False, repr=False)

    def value_names(self, classes: int) -> ValueNames:
        """Names of the label values that its steps make of an output of so many channels."""
        from .value_names import value_names

        if classes not in self._value_names:
            names = self.metadata.channel_names
            self._value_names[classes] = value_names(copy.deepcopy(self.postprocessing), classes, names)
        return self._value_names[classes]


def inference_config(root: Path) -> Path:
    """The bundle's inference config.

    Raises:
        BundleError: there is none.
    """
    for suffix in ("yaml", "yml", "json"):
        path = root / "configs" / f"inference.{suffix}"
        if path.is_file():
            return path
    raise BundleError(f"{root}: no configs/inference.yaml or .json here. Give the folder of a MONAI bundle.")


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """Imports of PyTorch, timm and MONAI make a million objects; to look for dead ones among them takes a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collecting_no_garbage()
def load_bundle(root: Path, device: str | None = None, safe: bool = False) -> Bundle:
    """Build what a bundle's inference config describes and load its weights.

    The config's own file lists, data loader, handlers and evaluator are left out: files come from the pipeline.

    Args:
        root: the bundle's folder.
        device: a torch device; None takes a GPU where there is one.
        safe: whether to refuse a config that is more than settings; see :mod:`monai_vit3d.pipeline.safety`.

    Raises:
        BundleError: no bundle, a config that cannot be built, or one that is not safe.
        WeightsError: weights that are missing, damaged or of another network.
        UsageError: a device that is not there.
    """
    import torch

    from .postprocessing import Postprocessing, without_labels

    _quieten_monai()
    where = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = inference_config(root)
    parser = _parse(root, path, where)
    loader = _checkpoint_loader(parser.get())
    roots = [name for name in _ROOTS if name in parser] + [name for name in _VALUES if name in parser]
    if safe:
        from .safety import check_config

        check_config(parser.get(), roots + ([f"{loader}::load_path"] if loader else []))
    else:
        let_import(root)
    build = _Builder(parser, path)
    build("imports", None)
    network = build("network", None) or build("network_def")
    weights = _load_weights(network, build, loader, root, safe)
    preprocessing = _flatten(build("preprocessing"))
    metadata = read_metadata(root)
    inferer, labels = without_labels(build("inferer", None) or _whole_volume())
    return Bundle(
        metadata=metadata,
        network=network.to(where).eval(),
        preprocessing=preprocessing,
        inferer=inferer,
        postprocessing=Postprocessing.of([*labels, *_flatten(build("postprocessing", None))]),
        image_key=_image_key(preprocessing, path),
        device=where,
        weights=weights,
        weights_sha256=file_sha256(weights),
        config_sha256=_config_sha256(root),
        class_names=_class_names(build, metadata),
        task=str(build("task", "multi-class")),
        autocast=build("evaluator::amp", False) is True and where.type == "cuda",
        flip_axes=_flip_axes(build("flip_axes", []), path),
    )


def _quieten_monai() -> None:
    # where pydicom is installed, MONAI's LoadImaged tells of a GPU decoder that nobody asked for
    warnings.filterwarnings("ignore", message=".*nvImageCodec")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    # for the bundle's author, as that Orientationd got another default for its labels
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"monai\.")


def _class_names(build: _Builder, metadata: Metadata) -> list[str]:
    if not metadata.classifies:
        return []
    return list(build("class_names", None) or metadata.channel_names.values())


def _flip_axes(axes: Any, path: Path) -> tuple[int, ...]:
    if not isinstance(axes, list) or not all(axis in (0, 1, 2) for axis in axes) or len(set(axes)) < len(axes):
        raise BundleError(f"{path}: flip_axes {axes!r}; a list of 0, 1 and 2, each once, is needed.")
    return tuple(axes)


def _usable(device: str) -> torch.device:
    import torch

    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device}: {reason} Give cpu, cuda, or the GPU's number as in cuda:1.") from error


def _config_sha256(root: Path) -> str:
    configs = root / "configs"
    files = sorted(path for path in configs.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    lines = [f"{file_sha256(path)}  {path.relative_to(configs).as_posix()}" for path in files]
    lines += [f"{file_sha256(path)}  {path.relative_to(root).as_posix()}" for path in python_files(root)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Builder:
    """Instances of a config's entries, with errors that name the file and the entry."""

    def __init__(self, parser: ConfigParser, path: Path) -> None:
        self.parser, self.path = parser, path

    def __call__(self, entry: str, *default: Any) -> Any:
        if entry not in self.parser:
            if default:
                return default[0]
            raise BundleError(f"{self.path}: no {entry!r}. A MONAI inference config with one is needed.")
        try:
            return self.parser.get_parsed_content(entry)
        except Exception as error:
            cause: BaseException = error
            while not isinstance(cause, Vit3dError) and cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, Vit3dError):
                raise cause from error
            raise BundleError(f"{self.path}: {entry!r} cannot be built: {type(cause).__name__}: {cause}") from error


def _parse(root: Path, path: Path, device: torch.device) -> ConfigParser:
    from monai.bundle import ConfigParser

    try:
        config = ConfigParser.load_config_file(path)
        parser = ConfigParser(config)
    except Exception as error:
        raise BundleError(f"{path}: not a readable config ({error}). Fetch the bundle again.") from error
    parser["bundle_root"] = str(root.resolve())
    for name in ("dataset_dir", "output_dir"):  # files come from the pipeline and go to it
        if name in config:
            parser[name] = str(root.resolve())
    parser["device"] = f"$torch.device('{device}')"
    return parser


def _checkpoint_loader(config: Any, entry: str = "") -> str | None:
    """Where in the config MONAI's CheckpointLoader stands."""
    if isinstance(config, dict) and str(config.get("_target_", "")).rpartition(".")[2] == "CheckpointLoader":
        return entry
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(config, dict | list):
        items = iter(config.items() if isinstance(config, dict) else enumerate(config))
    found = (_checkpoint_loader(value, f"{entry}::{key}" if entry else str(key)) for key, value in items)
    return next((one for one in found if one is not None), None)


def _load_weights(network: Any, build: _Builder, loader: str | None, root: Path, safe: bool) -> Path:
    """Load the checkpoint that the config names, unless the network's own entry did; returns its path."""
    from ..weights.files import load_state, read_checkpoint

    parser = build.parser
    own = "ckpt_path" in parser and "@ckpt_path" in str(parser.get("network"))
    path = Path(build(f"{loader}::load_path") if loader else build("ckpt_path", root / "models" / "model.pt"))
    if safe and not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path}: weights outside the bundle {root}. Run without --safe if you trust them.")
    if own:
        return path
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Fetch the bundle's weights, or train it.")
    state = read_checkpoint(path)
    keys = list(parser.get(f"{loader}::load_dict", {})) if loader else ["model", "network"]
    key = next((key for key in keys if isinstance(state, dict) and key in state), None)
    load_state(network, state if key is None else state[key], path)
    return path


def _flatten(transform: Any) -> list[Transform]:
    from monai.transforms import Compose

    if transform is None:
        return []
    return list(transform.flatten().transforms) if isinstance(transform, Compose) else [transform]


def _image_key(preprocessing: list[Any], path: Path) -> str:
    from monai.transforms import LoadImaged

    keys = [key for transform in preprocessing if isinstance(transform, LoadImaged) for key in transform.keys]
    if not keys:
        raise BundleError(f"{path}: 'preprocessing' has no LoadImaged. One that loads the image is needed.")
    return str(keys[0])


def _whole_volume() -> Callable[..., Any]:
    from monai.inferers import SimpleInferer

    return SimpleInferer()
