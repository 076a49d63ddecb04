"""Old public names: each works for one release and warns of the new name."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

# a name in the same package, or a dotted one in another
RENAMED = {
    "monai_vit3d.data": {
        "SeparableResample": "monai_vit3d.transforms.SeparableResample",
        "SeparableSpacing": "monai_vit3d.transforms.SeparableSpacing",
        "SeparableSpacingd": "monai_vit3d.transforms.SeparableSpacingd",
    },
    "monai_vit3d.handlers": {
        "Attached": "AttachHandlers",
        "MaskedBatch": "PrepareBatchMasked",
        "MixUpBatch": "PrepareBatchMixUp",
    },
    "monai_vit3d.inferers": {
        "LabelInverter": "monai_vit3d.transforms.LabelInverter",
        "WayBack": "monai_vit3d.transforms.InverseMapping",
        "argmax": "monai_vit3d.transforms.argmax",
        "finite": "monai_vit3d.transforms.require_finite_scores",
        "likeliest": "monai_vit3d.transforms.argmax_classes",
        "told_spacing": "with_spacing",
        "unwrapped": "unwrap_inferer",
        "way_back": "monai_vit3d.transforms.trace_inverse",
    },
    "monai_vit3d.pretraining": {"describe": "collapse_report"},
    "monai_vit3d.weights": {"files": "checkpoints"},
}


def find_renamed(package: str, name: str) -> Any:
    """Return what an old name of a package stands for today; the package's ``__getattr__`` calls this.

    Args:
        package: dotted name of the package.
        name: attribute that the package does not have.

    Raises:
        AttributeError: the package has never had this name.
    """
    new = RENAMED.get(package, {}).get(name)
    if new is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    new_package, _, attribute = new.rpartition(".")
    new_package = new_package or package
    warnings.warn(
        f"{package}.{name} is now {new_package}.{attribute}; the old name goes in the next release.",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(importlib.import_module(new_package), attribute)
