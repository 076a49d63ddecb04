"""A MONAI bundle's inference config, as the parts that one volume goes through."""

from __future__ import annotations

import copy
import gc
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.confinement import reading_only_below
from ..data.errors import BundleError, UsageError, Vit3dError
from ..data.files import file_sha256
from ..search_path import without_folders
from .bundle_weights import checkpoint_loader, load_network
from .config import AS_SHIPPED, Choice, config_files, one_line, read_parser
from .kinds import refuse_unserved
from .metadata import Metadata, read_metadata
from .own_code import let_import, python_files
from .ranks import Ranks

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser
    from monai.transforms import Transform

    from .postprocessing import Postprocessing
    from .value_names import ValueNames

logger = logging.getLogger(__name__)

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
    hashes = _config_hashes(root, choice)
    parser = read_parser(root, choice, where)
    path = config_files(root, choice.names)[-1]
    metadata = read_metadata(root)
    refuse_unserved(root, parser.get(), metadata)
    loader = checkpoint_loader(parser.get())
    roots = [name for name in (*_ROOTS, *_VALUES) if name in parser] + ([f"{loader}::load_path"] if loader else [])
    with _trusted(root, _is_settings_only(parser.get(), roots, safe), safe):
        without_itk(parser.get())
        build = _Builder(parser, path)
        build("imports", None)
        network, weights = load_network(build, parser, path, root / "models" / "model.pt")
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
        if not callable(inferer):
            raise BundleError(f"{path}: 'inferer' is {type(inferer).__name__}; one of MONAI's inferers is expected.")
        bundle = Bundle(
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
            weights=weights.path,
            weights_sha256=weights.sha256,
            config_sha256=hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
            class_names=_class_names(build, metadata, path),
            task=str(build("task", "multi-class")),
            autocast=build("evaluator::amp", False) is True and where.type == "cuda",
            flip_axes=_flip_axes(build("flip_axes", []), path),
        )
    if _config_hashes(root, choice) != hashes:
        raise BundleError(f"{root}: its configs or scripts changed while they were being loaded. Start again.")
    return bundle


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


def _class_names(build: _Builder, metadata: Metadata, path: Path) -> list[str]:
    if not metadata.classifies:
        return []
    names = build("class_names", None) or list(metadata.channel_names.values())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{path}: class_names {names!r}; a list of texts is expected.")
    return list(names)


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


def _config_hashes(root: Path, choice: Choice) -> list[str]:
    """SHA-256 and name of each file in ``configs``, and of the bundle's Python files; the choice, if one was made."""
    configs = root / "configs"
    files = sorted(path for path in configs.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    lines = [f"{file_sha256(path)}  {path.relative_to(configs).as_posix()}" for path in files]
    lines += [f"{file_sha256(path)}  {path.relative_to(root).as_posix()}" for path in python_files(root)]
    return lines + ([choice.text] if choice.text else [])


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
            reason = f"{type(cause).__name__}: {one_line(cause)}"
            raise BundleError(f"{self.path}: {entry!r} cannot be built: {reason}") from error


def _is_settings_only(config: dict[str, Any], roots: list[str], safe: bool) -> bool:
    """Whether a config is no more than settings; import statements that settings do not need are dropped from it then.

    Raises:
        BundleError: with ``safe``, if it is more.
    """
    from .safety import check_config, drop_imports

    tried = copy.deepcopy(config)
    drop_imports(tried)
    try:
        check_config(tried, roots)
    except BundleError:
        if safe:
            raise
        return False
    drop_imports(config)
    return True


@contextmanager
def _trusted(root: Path, settings_only: bool, safe: bool) -> Iterator[None]:
    """Let a bundle that is code import from its folder, and say so; of others nothing is imported."""
    if not settings_only:
        if Ranks.from_environment().first:
            logger.warning("%s is code that runs here; --safe takes settings only", root)
        let_import(root)
    with ExitStack() as stack:
        if safe:
            stack.enter_context(reading_only_below(root))
            stack.enter_context(without_folders(root))
        yield


def _flatten(transform: Any) -> list[Transform]:
    from monai.transforms import Compose

    if transform is None:
        return []
    return list(transform.flatten().transforms) if isinstance(transform, Compose) else [transform]


def _whole_volume() -> Callable[..., Any]:
    from monai.inferers import SimpleInferer

    return SimpleInferer()
