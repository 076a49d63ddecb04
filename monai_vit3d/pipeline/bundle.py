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
from .config import AS_SHIPPED, Choice, config_files, one_line, read_parser
from .kinds import refuse_unserved
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
        image_key: what the transforms call the network's input.
        load_keys: under which keys they load images; more than one for a bundle that loads each modality by itself.
        weights: the checkpoint.
        weights_sha256: of the checkpoint.
        config_sha256: of the bundle's ``configs`` and Python files, on any of which an answer may depend.
        class_names: of a classifier's classes; empty for segmentation.
        task: of a classifier.
        autocast: whether the config asks for mixed precision.
        flip_axes: axes of the network's input along which it was trained with flips; the config's ``flip_axes``.
        backend: what runs the network, with its version where that is not PyTorch itself.
        bf16: whether the network was told to compute in bfloat16, whatever the config says.
        max_voxels: the largest image that the bundle's own reader takes; None is any.
        lazy: whether the preprocessing's Compose resamples once for several transforms.
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
    load_keys: tuple[str, ...] = ("image",)
    max_voxels: int | None = None
    lazy: bool = False
    _value_names: dict[int, ValueNames] = field(default_factory=dict, init=False, repr=False)

    def value_names(self, classes: int) -> ValueNames:
        """Names of the label values that its steps make of an output of so many channels."""
        from .value_names import value_names

        if classes not in self._value_names:
            names = self.metadata.channel_names
            self._value_names[classes] = value_names(copy.deepcopy(self.postprocessing), classes, names)
        return self._value_names[classes]


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
def load_bundle(root: Path, device: str | None = None, safe: bool = False, choice: Choice = AS_SHIPPED) -> Bundle:
    """Build what a bundle's inference config describes and load its weights.

    The config's own file lists, data loader, handlers and evaluator are left out: files come from the pipeline.

    Args:
        root: the bundle's folder.
        device: a torch device; None takes a GPU where there is one.
        safe: whether to refuse a config that is more than settings; see :mod:`monai_vit3d.pipeline.safety`.
        choice: config files other than ``inference``, and values that are set in them.

    Raises:
        BundleError: no bundle, a config that cannot be built, or one that is not safe.
        WeightsError: weights that are missing, damaged or of another network.
        UsageError: a device, config file or entry that is not there.
    """
    _quieten_monai()
    try:
        return _load(root, device, safe, choice)
    except Vit3dError:
        raise
    except Exception as error:  # a config can hold anything anywhere
        raise BundleError(f"{root}: cannot be loaded: {type(error).__name__}: {one_line(error)}") from error


def _load(root: Path, device: str | None, safe: bool, choice: Choice) -> Bundle:
    import torch
    from monai.transforms import Compose

    from ..inferers import sliding_over_slices
    from .postprocessing import Postprocessing, without_labels
    from .readers import loading_of, without_itk

    where = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parser = read_parser(root, choice, where)
    path = config_files(root, choice.names)[-1]
    metadata = read_metadata(root)
    refuse_unserved(root, parser.get(), metadata)
    loader = _checkpoint_loader(parser.get())
    roots = [name for name in _ROOTS if name in parser] + [name for name in _VALUES if name in parser]
    if safe:
        from .safety import check_config, drop_imports

        drop_imports(parser.get())
        check_config(parser.get(), roots + ([f"{loader}::load_path"] if loader else []))
    else:
        let_import(root)
    without_itk(parser.get())
    build = _Builder(parser, path)
    build("imports", None)
    network = build("network", None) or build("network_def")
    weights = _load_weights(network, build, loader, root, safe)
    network = network.to(where).eval()
    composed = build("preprocessing")
    lazy = _is_lazy(composed, path)
    try:
        loading, preprocessing = loading_of(_flatten(composed))
        if isinstance(composed, Compose):
            composed.transforms = preprocessing  # the bundle's Invertd inverts this very object
        inferer, labels = without_labels(build("inferer", None) or _whole_volume())
        inferer, network = sliding_over_slices(inferer, network)
    except Vit3dError as error:
        raise BundleError(f"{path}: {error}") from error
    return Bundle(
        metadata=metadata,
        network=network,
        preprocessing=preprocessing,
        inferer=inferer,
        postprocessing=Postprocessing.of([*labels, *_flatten(build("postprocessing", None))]),
        image_key=loading.image_key,
        load_keys=loading.keys,
        max_voxels=loading.max_voxels,
        lazy=lazy,
        device=where,
        weights=weights,
        weights_sha256=file_sha256(weights),
        config_sha256=_config_sha256(root, choice),
        class_names=_class_names(build, metadata),
        task=str(build("task", "multi-class")),
        autocast=build("evaluator::amp", False) is True and where.type == "cuda",
        flip_axes=_flip_axes(build("flip_axes", []), path),
    )


def _is_lazy(composed: Any, path: Path) -> bool:
    """Whether the preprocessing resamples once for several transforms.

    Raises:
        BundleError: options of Compose that are not served.
    """
    from monai.transforms import Compose

    if type(composed) is not Compose:
        return False
    if composed.overrides or not composed.map_items or composed.unpack_items:
        raise BundleError(f"{path}: 'preprocessing': Compose with overrides, map_items or unpack_items is not served.")
    inner = {_is_lazy(step, path) for step in composed.transforms if type(step) is Compose}
    if inner - {bool(composed.lazy)}:
        raise BundleError(f"{path}: 'preprocessing': some of its Compose are lazy, some are not; one is needed.")
    return bool(composed.lazy)


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


def _config_sha256(root: Path, choice: Choice) -> str:
    configs = root / "configs"
    files = sorted(path for path in configs.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    lines = [f"{file_sha256(path)}  {path.relative_to(configs).as_posix()}" for path in files]
    lines += [f"{file_sha256(path)}  {path.relative_to(root).as_posix()}" for path in python_files(root)]
    lines += [choice.text] if choice.text else []
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


def _whole_volume() -> Callable[..., Any]:
    from monai.inferers import SimpleInferer

    return SimpleInferer()
