"""Load a MONAI bundle: build what its inference config describes, with the weights in the network."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.errors import BundleError, UsageError, Vit3dError

from .config import AS_SHIPPED, Choice, one_line
from .metadata import Metadata
from .open_config import OpenConfig, open_config
from .weights import BundleWeights, load_bundle_network

if TYPE_CHECKING:
    import torch

    from .postprocessing import Postprocessing
    from .preprocessing import Preprocessing
    from .value_names import ValueNames


@dataclass(eq=False, kw_only=True)
class BundleSteps:
    """The steps of a bundle around its network.

    Args:
        metadata: of the bundle.
        preprocessing: transforms from files to the network's input.
        inferer: how the network runs over an input.
        postprocessing: transforms from the network's output to labels or probabilities.
    """

    metadata: Metadata
    preprocessing: Preprocessing
    inferer: Callable[..., Any]
    postprocessing: Postprocessing
    _value_names: dict[int, ValueNames] = field(default_factory=dict, init=False, repr=False)

    @property
    def images_per_case(self) -> int:
        """Number of images that make one input: one for each key that is loaded, or for each channel of the one."""
        keys = self.preprocessing.load_keys
        return len(keys) if len(keys) > 1 else self.metadata.channels

    def value_names(self, classes: int) -> ValueNames:
        """Return names of the label values after all steps.

        Args:
            classes: channels of the network's output.
        """
        from .value_names import value_names

        if classes not in self._value_names:
            names = self.metadata.channel_names
            self._value_names[classes] = value_names(copy.deepcopy(self.postprocessing), classes, names)
        return self._value_names[classes]


@dataclass(eq=False, kw_only=True)
class Bundle(BundleSteps):
    """A bundle with the weights in its network.

    Args:
        network: in evaluation mode, on ``device``.
        weights: the checkpoint, or those of an ensemble's members.
        config_sha256: of the bundle's ``configs`` and Python files, on any of which an answer may depend.
        class_names: of a classifier's classes; empty for segmentation.
        task: of a classifier.
        autocast: whether the config asks for mixed precision.
        flip_axes: axes of the network's input along which it was trained with flips; the config's ``flip_axes``.
        tta_degrees: angles about the three axes, and
        tta_scales: factors, of the views of :class:`~monai_vit3d.inferers.AffineEnsemble`; the config's entries.
        backend: what runs the network, with its version where that is not PyTorch itself.
        backend_reason: why this backend runs it.
        bf16: whether the network computes in bfloat16 by the caller's choice, whatever the config says.
    """

    network: torch.nn.Module
    device: torch.device
    weights: BundleWeights
    config_sha256: str
    class_names: list[str]
    task: str
    autocast: bool
    flip_axes: tuple[int, ...] = ()
    tta_degrees: tuple[float, ...] = (0, 0, 0)
    tta_scales: tuple[float, ...] = ()
    backend: str = "torch"
    backend_reason: str = "asked for"
    bf16: bool = False


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """Switch garbage collection off: it takes a second for the million objects that PyTorch and MONAI import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _loading(root: Path) -> Iterator[None]:
    """Raise whatever a bundle's own entries raise as one line that names the bundle."""
    # where pydicom is installed, MONAI's LoadImaged warns of a GPU decoder that is not used here
    warnings.filterwarnings("ignore", message=".*nvImageCodec")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    # addressed to the bundle's author: Orientationd got another default for its labels
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"monai\.")
    try:
        with collecting_no_garbage():
            yield
    except Vit3dError:
        raise
    except Exception as error:  # a config can hold anything anywhere
        raise BundleError(f"{root}: cannot be loaded: {type(error).__name__}: {one_line(error)}") from error


def load_steps(root: str | Path, safe: bool = False, choice: Choice = AS_SHIPPED) -> BundleSteps:
    """Build a bundle's steps; its network is not built, its weights are not read.

    Args:
        root: the bundle's folder.
        safe: whether to refuse a config that is more than settings, in the network's entries, too.
        choice: config files other than ``inference``, and values that are set in them.

    Raises:
        BundleError: no bundle, a config that cannot be built, or one that is not safe.
        UsageError: a config file or entry that is not there.
    """
    root = Path(root)
    with _loading(root), open_config(root, "cpu", safe, choice) as config:
        return BundleSteps(**_build_steps(config))


def load_bundle(root: str | Path, device: str | None = None, safe: bool = False, choice: Choice = AS_SHIPPED) -> Bundle:
    """Build what a bundle's inference config describes and load its weights.

    The config's own file lists, data loader, handlers and evaluator are left out: files come from the pipeline.

    Args:
        root: the bundle's folder.
        device: a torch device; None takes a GPU where there is one.
        safe: whether to refuse a config that is more than settings; see :mod:`monai_vit3d.bundle.safety`.
        choice: config files other than ``inference``, and values that are set in them.

    Raises:
        BundleError: no bundle, a config that cannot be built, or one that is not safe.
        WeightsError: weights that are missing, damaged or of another network.
        UsageError: a device, config file or entry that is not there.
    """
    root = Path(root)
    with _loading(root):
        import torch

        from monai_vit3d.inferers import sliding_over_slices

        torch_device = _check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with open_config(root, torch_device, safe, choice) as config:
            network, weights = load_bundle_network(
                config.build, config.parser, config.path, root / "models" / "model.pt"
            )
            steps = _build_steps(config)
            with config.naming_file():
                steps["inferer"], network = sliding_over_slices(steps["inferer"], network.to(torch_device).eval())
            degrees, scales = _affine_views(config)
            return Bundle(
                **steps,
                network=network,
                device=torch_device,
                weights=weights,
                config_sha256=config.sha256,
                class_names=_class_names(config),
                task=str(config.build("task", "multi-class")),
                autocast=config.build("evaluator::amp", False) is True and torch_device.type == "cuda",
                flip_axes=_flip_axes(config),
                tta_degrees=degrees,
                tta_scales=scales,
            )


def _build_steps(config: OpenConfig) -> dict[str, Any]:
    """Build the fields of :class:`BundleSteps`."""
    from monai.inferers import SimpleInferer

    from .postprocessing import Postprocessing, without_labels
    from .preprocessing import Preprocessing, flatten

    composed = config.build("preprocessing")
    inferer = config.build("inferer", None) or SimpleInferer()
    with config.naming_file():
        preprocessing = Preprocessing.of(composed)
        inferer, labels = without_labels(inferer)
    if not callable(inferer):
        raise BundleError(f"{config.path}: 'inferer' is {type(inferer).__name__}; one of MONAI's inferers is expected.")
    postprocessing = Postprocessing.of([*labels, *flatten(config.build("postprocessing", None))])
    return {
        "metadata": config.metadata,
        "preprocessing": preprocessing,
        "inferer": inferer,
        "postprocessing": postprocessing,
    }


def _class_names(config: OpenConfig) -> list[str]:
    if not config.metadata.classifies:
        return []
    names = config.build("class_names", None) or list(config.metadata.channel_names.values())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{config.path}: class_names {names!r}; a list of texts is expected.")
    return list(names)


def _flip_axes(config: OpenConfig) -> tuple[int, ...]:
    axes = config.build("flip_axes", [])
    if not isinstance(axes, list) or not all(axis in (0, 1, 2) for axis in axes) or len(set(axes)) < len(axes):
        raise BundleError(f"{config.path}: flip_axes {axes!r}; expected a list of 0, 1 and 2, each once.")
    return tuple(axes)


def _affine_views(config: OpenConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from monai_vit3d.inferers.affine_ensemble import require_views

    degrees, scales = config.build("tta_degrees", [0, 0, 0]), config.build("tta_scales", [])
    for name, value in (("tta_degrees", degrees), ("tta_scales", scales)):
        if not isinstance(value, list) or not all(isinstance(number, int | float) for number in value):
            raise BundleError(f"{config.path}: {name} {value!r}; expected a list of numbers.")
    try:
        require_views(degrees, scales)
    except UsageError as error:
        raise BundleError(f"{config.path}: tta_{error}") from error
    return tuple(degrees), tuple(scales)


def _check_device(device: str) -> torch.device:
    import torch

    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UsageError(f"device={device}: {reason} Give cpu, cuda, or the GPU's number as in cuda:1.") from error
