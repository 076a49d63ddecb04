"""Recognise the kind of bundle that a config describes, and whether ``vit3d predict`` runs it; nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import BundleError

from .metadata import Metadata


@dataclass(frozen=True)
class Kind:
    """A kind of bundle.

    Args:
        name: one of the kinds of ``RULES``, or of the two that are served.
        gives: what comes out, in words.
        served: whether ``vit3d predict`` runs it.
    """

    name: str
    gives: str
    served: bool = False

    @property
    def text(self) -> str:
        """One line for a user."""
        if self.served:
            return f"{self.name}: {self.gives}"
        return f"{self.name}: {self.gives}; not served by vit3d predict, run it by python -m monai.bundle run"


SEGMENTATION = Kind("segmentation", "labels on each file's own grid", served=True)
SLICES = Kind("segmentation, slice by slice", "labels on each file's own grid", served=True)
CLASSIFICATION = Kind("classification of volumes", "predictions.csv", served=True)


@dataclass(frozen=True)
class Traits:
    """The properties of a bundle that :data:`RULES` look at.

    Args:
        code: names of classes and expressions in the entries that inference runs, a line each.
        pred: type and format of the output, by metadata.json.
        inputs: types and formats of the inputs, by metadata.json.
        dims: spatial axes of the network's input; None where neither config nor metadata say.
        task: by metadata.json.
        classifies: whether the output is probabilities of classes.
    """

    code: str
    pred: str
    inputs: str
    dims: int | None
    task: str
    classifies: bool

    def runs(self, pattern: str) -> bool:
        """Return whether the config names something."""
        return re.search(pattern, self.code, re.MULTILINE) is not None


Rule = tuple[Kind, Callable[[Traits], bool]]

_PROMPTS = r"DeepEdit|DeepGrow|Deepgrow|DiscrepancyRegion|Guidance|[Vv]ista3[dD]|VistaPre|vista3d132|[Pp]rompt|\bSam\b"
_GENERATES = (
    r"AutoencoderKL|VQVAE|VQ_VAE|DiffusionModelUNet|SPADE|ControlNet|Scheduler\b|LatentDiffusion|DiffusionInferer"
    r"|nets\.Generator|^Generator|VarAutoEncoder|TransformerInferer|DecoderOnlyTransformer"
)
_DETECTS = r"RetinaNet|apps\.detection|Detector\b|BoxToImage|ConvertBoxMode|anchor_generator"
_SLIDES = r"WSI|CuCIM|cuCIM|HoVerNet|OpenSlide|ProbMapProducer|MILModel|TileOnGrid"
_SLICES = r"\bSliceInferer$"
_REGISTERS = r"Warp\b|DVF2DDF|VoxelMorph|GlobalNet|LocalNet|RegUNet|RegResNet|AffineHead"

# the first rule that holds names the kind; rules look at what the config runs, then at metadata.json
RULES: tuple[Rule, ...] = (
    (Kind("interactive segmentation", "labels for a user's clicks, boxes or class prompts"),
     lambda t: t.runs(_PROMPTS)),
    (Kind("detection", "boxes and scores"),
     lambda t: t.runs(_DETECTS) or "boxes" in t.pred or t.pred.startswith("object")),
    (Kind("landmarks", "coordinates of points"),
     lambda t: re.search("points|landmark|coordinate", t.pred) is not None or t.runs("Landmark|PointRegressor")),
    (Kind("whole-slide pathology", "maps or labels of tiles of microscopy slides"), lambda t: t.runs(_SLIDES)),
    (Kind("image generation", "new images of noise, a latent code or a table"),
     lambda t: t.runs(_GENERATES) or re.search("latent|noise|timesteps", t.inputs) is not None),
    (Kind("features", "numbers that an encoder makes of an image"), lambda t: "feature" in t.pred),
    (Kind("tabular data", "an answer to a table, not to an image"), lambda t: "tabular" in t.inputs),
    (Kind("registration", "an image moved onto another one"),
     lambda t: t.runs(_REGISTERS) or re.search("regist|spatial transformer", t.task) is not None),
    (Kind("classification of 2D images", "classes of pictures or slices"),
     lambda t: t.dims == 2 and t.classifies),
    (Kind("segmentation of 2D images", "labels of pictures or video frames"), lambda t: t.dims == 2),
    (Kind("image to image", "an image of intensities"),
     lambda t: re.search(r"^image (image|magnitude|hounsfield|rgb)\b", t.pred) is not None
     and not t.runs("AsDiscrete")),
    (Kind("regression", "numbers for a volume"), lambda t: t.runs(r"\bRegressor\b")),
)  # fmt: skip
_ENTRIES = (
    "network", "network_def", "preprocessing", "inferer", "postprocessing", "dataset", "handlers", "val_handlers",
    "evaluator", "run",
)  # fmt: skip


def kind_of(config: Mapping[str, Any], metadata: Metadata) -> Kind:
    """Recognise the kind of a bundle by its inference config and metadata; nothing is evaluated or imported.

    Args:
        config: the inference config, as it was read.
        metadata: of the bundle.
    """
    traits = _traits(config, metadata)
    for kind, holds in RULES:
        if holds(traits):
            return kind
    if traits.classifies:
        return CLASSIFICATION
    return SLICES if traits.runs(_SLICES) else SEGMENTATION


def refuse_unserved(root: Path, config: Mapping[str, Any], metadata: Metadata) -> None:
    """Refuse a bundle of a kind that is not served, before anything of it runs.

    Raises:
        BundleError: not served; the message names the kind, and how to run the bundle.
    """
    kind = kind_of(config, metadata)
    if not kind.served:
        raise BundleError(f"{root}: {kind.text}.")


def _traits(config: Mapping[str, Any], metadata: Metadata) -> Traits:
    formats = metadata.content.get("network_data_format", {})
    inputs = [form for form in formats.get("inputs", {}).values() if isinstance(form, Mapping)]
    outputs = formats.get("outputs", {})
    pred = outputs.get("pred", next(iter(outputs.values()), {}))
    code = "\n".join(_code(config))
    return Traits(
        code=code,
        pred=f"{pred.get('type', '')} {pred.get('format', '')}".lower(),
        inputs=" ".join(f"{form.get('type', '')} {form.get('format', '')}" for form in inputs).lower(),
        # a 2D network that is moved over slices reads volumes
        dims=3 if re.search(_SLICES, code, re.MULTILINE) else _dims(config, inputs),
        task=str(metadata.content.get("task", "")).lower(),
        classifies=metadata.classifies or "classification" in str(pred.get("format")),
    )


def _dims(config: Mapping[str, Any], inputs: list[Mapping[str, Any]]) -> int | None:
    """Count the spatial axes of the network's input, by config or metadata; None where neither says."""
    network = config.get("network_def", config.get("network"))
    dims = network.get("spatial_dims") if isinstance(network, Mapping) else None
    if isinstance(network, Mapping) and "TorchVision" in str(network.get("_target_")):
        dims = 2
    if isinstance(dims, int):
        return dims
    shapes = [form.get("spatial_shape") for form in inputs]
    lengths = {len(shape) for shape in shapes if isinstance(shape, list) and shape}
    return lengths.pop() if len(lengths) == 1 else None


def _code(config: Mapping[str, Any]) -> Iterator[str]:
    """List class names and expressions of the entries that inference runs, and of all that they refer to."""
    waiting: list[Any] = [config[name] for name in _ENTRIES if name in config]
    seen: set[int] = set()
    referred: set[str] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if value.startswith("$"):
                yield value
            for name in re.findall(r"@([A-Za-z_]\w*)", value):
                if name not in referred and name in config:
                    referred.add(name)
                    waiting.append(config[name])
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            if value.get("_disabled_") is True:
                continue
            yield str(value.get("_target_", ""))
        waiting += value.values() if isinstance(value, dict) else value
