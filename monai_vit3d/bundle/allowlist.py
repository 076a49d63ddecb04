"""Tables of what a bundle may name in safe mode; whatever is not listed here is refused."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any


def _split(text: str) -> frozenset[str]:
    return frozenset(text.split())


# expressions

ALLOWED_BUILTINS = _split("len int float str bool round min max sum abs zip range sorted list tuple dict set enumerate")
ALLOWED_CALLS = _split(
    "torch.device torch.cuda.is_available os.path.join os.path.basename monai_vit3d.weights.load_weights "
    "monai_vit3d.weights.load_backbone monai_vit3d.weights.network_from monai_vit3d.data.medmnist3d_info "
    "monai_vit3d.data.class_names monai_vit3d.data.nifti_files monai_vit3d.data.image_cases "
    "monai_vit3d.networks.probabilities monai_vit3d.weights.fold_files monai_vit3d.weights.ensure_weights"
)
# functions of tensors whose result is no larger than their arguments: no files, no unbounded memory
_TENSOR_FUNCTIONS = _split(
    "where argmax argmin softmax sigmoid clamp round floor ceil abs sign isnan isinf isfinite nan_to_num eq ne lt le "
    "gt ge maximum minimum logical_and logical_or logical_not logical_xor any all sum mean amax amin"
)
ALLOWED_CALLS |= {f"torch.{name}" for name in _TENSOR_FUNCTIONS}
ALLOWED_METHODS = _split(
    "to get eval items keys values lower upper float long int bool argmax argmin sum mean amax amin any all clamp "
    "round abs squeeze unsqueeze"
)
_NUMBERS = _split("float16 float32 float64 uint8 int8 int16 int32 int64")
_TORCH_NUMBERS = [*_NUMBERS, "bfloat16", "float", "half", "double", "int", "long", "bool"]
ALLOWED_VALUES = frozenset(
    [*(f"torch.{n}" for n in _TORCH_NUMBERS), *(f"{np}.{n}" for np in ("np", "numpy") for n in [*_NUMBERS, "bool_"])]
)
_MODULES = _split("os glob json math numpy torch monai monai_vit3d")
ALLOWED_IMPORTS = frozenset([*(f"import {m}" for m in _MODULES), "import numpy as np", "import os.path as osp"])
ALLOWED_MODULE_NAMES = frozenset([*_MODULES, "np", "osp"])

_ENUM_MEMBER = re.compile(r"monai\.utils\.(enums\.)?([A-Z]\w*)\.([A-Za-z]\w*)")


def is_enum_member(name: str) -> bool:
    """Return whether a dotted name is a member of an enumeration of MONAI's, as ``monai.utils.CommonKeys.IMAGE``."""
    from enum import EnumMeta

    from monai.utils import enums

    match = _ENUM_MEMBER.fullmatch(name)
    kind = getattr(enums, match[2], None) if match else None
    return match is not None and isinstance(kind, EnumMeta) and match[3] in kind.__members__


# targets

DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
SPECIAL_KEYS = _split("_target_ _disabled_ _requires_ _desc_ _mode_")
ALLOWED_MODULE_PREFIXES = (
    "monai.transforms.", "monai.networks.nets.", "monai.networks.blocks.", "monai.networks.layers.",
    "monai.inferers.", "monai.data.", "torch.nn.", "monai_vit3d.layers.", "monai_vit3d.decoders.",
    "monai_vit3d.networks.", "monai_vit3d.transforms.", "monai_vit3d.inferers.", "monai_vit3d.data.",
)  # fmt: skip
TARGET_FUNCTIONS = _split(
    "monai_vit3d.networks.create_preset monai_vit3d.networks.presets.create_preset monai_vit3d.networks.create_model "
    "monai_vit3d.weights.load_weights monai_vit3d.weights.load_backbone monai_vit3d.weights.network_from"
)
READER_CLASSES = _split("NibabelReader ITKReader NiftiReader")
ALLOWED_READERS = _split("NibabelReader ITKReader monai_vit3d.data.NiftiReader monai_vit3d.data.nifti.NiftiReader")
_NETS = _split(
    "AHNet AttentionUnet AutoEncoder BasicUNet BasicUNetPlusPlus Classifier DenseNet DenseNet121 DenseNet169 "
    "DenseNet201 DenseNet264 DynUNet HighResNet MedNeXt Regressor ResNet SegResNet SegResNetVAE SegResNetDS "
    "SegResNetDS2 SENet SwinUNETR UNet UNETR ViT ViTAutoEnc VNet"
)
_BLOCKS = _split("ADN Convolution ResidualUnit SubpixelUpsample UpSample Warp")
_LAYERS = _split("Flatten GaussianFilter Reshape SkipConnection")
_INFERERS = _split("SimpleInferer SlidingWindowInferer SlidingWindowInfererAdapt SliceInferer")
# transforms that name other libraries as text, write files or wait
_NOT_TRANSFORMS = re.compile(
    r".*(TorchVision|TorchIO|CuCIM|[Aa]daptor|SaveClassification|WriteFileMapping|SimulateDelay)"
)
# where the class is defined, what it derives from, names (None: all)
_CLASS_RULES: tuple[tuple[str, str, frozenset[str] | None], ...] = (
    ("monai.transforms.", "monai.transforms.Transform", None),
    ("monai.networks.nets.", "torch.nn.Module", _NETS),
    ("monai.networks.blocks.", "torch.nn.Module", _BLOCKS),
    ("monai.networks.layers.", "torch.nn.Module", _LAYERS),
    ("monai.inferers.", "monai.inferers.Inferer", _INFERERS),
    # no Dataset or DataLoader: subscripts and loops over them run transforms on what the bundle chooses
    ("monai.data.", "monai.data.ImageReader", READER_CLASSES),
    ("torch.nn.modules.", "torch.nn.Module", None),
    ("monai_vit3d.layers.", "torch.nn.Module", None),
    ("monai_vit3d.decoders.", "torch.nn.Module", None),
    ("monai_vit3d.networks.", "torch.nn.Module", None),
    ("monai_vit3d.inferers.head_localizer.", "torch.nn.Module", None),
    ("monai_vit3d.inferers.", "monai.inferers.Inferer", None),
    ("monai_vit3d.transforms.masks.", "monai.transforms.Transform", None),
    ("monai_vit3d.transforms.spacing.", "monai.transforms.Transform", None),
    ("monai_vit3d.transforms.normalize_channels.", "monai.transforms.Transform", None),
    ("monai_vit3d.data.", "monai.data.ImageReader", READER_CLASSES),
)
_UNCALLED = ("torch.nn.modules.", "monai_vit3d.layers.")

# arguments

# others go on to all of MONAI's readers: allow_pickle, with which a file can hold code
LOAD_ARGUMENTS = _split(
    "keys reader dtype meta_keys meta_key_postfix overwriting image_only ensure_channel_first simple_keys "
    "prune_meta_pattern prune_meta_sep allow_missing_keys expanduser channel_dim as_closest_canonical "
    "squeeze_non_spatial_dims affine_lps_to_ras reverse_indexing"
)

_SAVE_ARGUMENTS = _split(
    "keys output_dir output_postfix output_ext output_dtype resample mode padding_mode scale dtype "
    "squeeze_end_dims separate_folder data_root_dir print_log channel_dim meta_keys meta_key_postfix "
    "allow_missing_keys"
)


def class_violation(target: Any) -> str:
    """Say why an object may not be a target, or "" if it may; where it is defined counts, not the name in the config.

    Args:
        target: what the name of a ``_target_`` leads to.
    """
    if not isinstance(target, type):
        return "expected a class" if target is not None else "no such class"
    home = f"{target.__module__}.{target.__qualname__}"
    for prefix, base, names in _CLASS_RULES:
        if home.startswith(prefix):
            if not issubclass(target, _base(base)):
                return f"{home} is not a {base}"
            if names is not None and target.__name__ not in names:
                return f"{home} is not among {', '.join(sorted(names))}"
            return f"{home} reaches other libraries or files" if _NOT_TRANSFORMS.match(target.__name__) else ""
    return f"it is {home}, outside {', '.join(prefix for prefix, _, _ in _CLASS_RULES)}"


def may_be_uncalled(target: Any) -> bool:
    """Return whether a class may be passed on uncalled; with LoadImage or its like, data would choose what runs."""
    return isinstance(target, type) and target.__module__.startswith(_UNCALLED)


def is_harmless_save_argument(key: str, raw: Any, value: Any) -> bool:
    """Return whether an argument of SaveImage keeps the file in the output folder.

    Args:
        key: its name.
        raw: its value in the config.
        value: what a reference leads to.
    """
    if key == "output_dir":
        return bool(raw == "@output_dir")
    if key == "data_root_dir":
        return not raw or raw == "@dataset_dir"
    if key == "output_ext":
        return value in (".nii", ".nii.gz")
    if key != "output_postfix":
        return key in _SAVE_ARGUMENTS
    return isinstance(value, str) and re.fullmatch(r"[\w-]*", value) is not None


@cache
def plain_types() -> tuple[type, ...]:
    """Return the types that a config's leaves may have: those of YAML and JSON, and of values set from Python."""
    import torch

    return (str, int, float, os.PathLike, torch.device)  # type: ignore[return-value]


@cache
def _base(path: str) -> type:
    from pydoc import locate

    base = locate(path)
    if not isinstance(base, type):
        raise LookupError(f"{path} is no class; {__name__} needs another entry.")
    return base
