"""Old public names of classes, functions, arguments and attributes: each works for one release and warns."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# a name in the same package, or a dotted one in another
RENAMED = {
    "monai_vit3d.data": {
        "SeparableResample": "monai_vit3d.transforms.SeparableResample",
        "SeparableSpacing": "monai_vit3d.transforms.SeparableSpacing",
        "SeparableSpacingd": "monai_vit3d.transforms.SeparableSpacingd",
    },
    "monai_vit3d.data.nifti": {"read_grid": "read_nifti_grid", "read_volume": "read_nifti"},
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
    "monai_vit3d.networks": {
        "architecture": "model_args",
        "build_backbone": "build_network",
        "create_model": "create_preset",
    },
    "monai_vit3d.pretraining": {"describe": "collapse_report"},
}


# modules that users import from, under their old and their new paths
MOVED = {
    "monai_vit3d.data.nifti.door": "monai_vit3d.data.nifti.read",
    "monai_vit3d.data.spacing": "monai_vit3d.transforms.spacing",
    "monai_vit3d.data.tables": "monai_vit3d.data.csv_labels",
    "monai_vit3d.data.tasks": "monai_vit3d.data.task_names",
    "monai_vit3d.inferers.invert": "monai_vit3d.transforms.label_inversion",
    "monai_vit3d.inferers.way_back": "monai_vit3d.transforms.inverse_mapping",
    "monai_vit3d.networks.contract": "monai_vit3d.networks.vit3d",
    "monai_vit3d.networks.embedding": "monai_vit3d.networks.vit3d",
    "monai_vit3d.networks.features": "monai_vit3d.networks.vit3d",
    "monai_vit3d.networks.tasks": "monai_vit3d.networks.task_losses",
    "monai_vit3d.pipeline.bundle": "monai_vit3d.bundle.load",
    "monai_vit3d.pipeline.cohort": "monai_vit3d.pipeline.run_cases",
    "monai_vit3d.pipeline.info": "monai_vit3d.bundle.info",
    "monai_vit3d.pipeline.metadata": "monai_vit3d.bundle.metadata",
    "monai_vit3d.pipeline.predict": "monai_vit3d.pipeline.inference",
    "monai_vit3d.weights.families": "monai_vit3d.weights.sources",
    "monai_vit3d.weights.files": "monai_vit3d.networks.checkpoints",
}


class OldModules(MetaPathFinder, Loader):
    """An import hook, asked after all others, that gives a moved module under its old path, with a warning."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for the old path of a module that moved."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the moved module in the place of the new one."""
        old, new = module.__name__, MOVED[module.__name__]
        warn_renamed(old, new)
        sys.modules[old] = importlib.import_module(new)


def find_renamed(package: str, name: str) -> Any:
    """Return what an old name of a package stands for today; the package's ``__getattr__`` calls this.

    The old path of a module that moved is an attribute of its former package, too.

    Args:
        package: dotted name of the package.
        name: attribute that the package does not have.

    Raises:
        AttributeError: the package has never had this name.
    """
    new = RENAMED.get(package, {}).get(name)
    if new is None and f"{package}.{name}" in MOVED:
        return importlib.import_module(f"{package}.{name}")
    if new is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    new_package, _, attribute = new.rpartition(".")
    new_package = new_package or package
    warn_renamed(f"{package}.{name}", f"{new_package}.{attribute}", 4)
    return getattr(importlib.import_module(new_package), attribute)


def renamed_argument(old: str, new: str, value: Any, options: dict[str, Any]) -> Any:
    """Take an argument's value from its new name or, with a warning, from its former one.

    Args:
        old: the former name.
        new: the name.
        value: what came under the new name.
        options: further keywords; the former name is removed from them.

    Raises:
        ValueError: both names were given.
    """
    if old not in options:
        return value
    warn_renamed(old, new, 4)
    if value is not None:
        raise ValueError(f"{old}={options[old]!r} and {new}={value!r} are one argument: expected {new} alone.")
    return options.pop(old)


def renamed_attribute(old: str, new: str) -> property:
    """Return a property that reads and writes the attribute ``new`` under its former name, with a warning."""

    def read(self: Any) -> Any:
        """Return the attribute under its former name."""
        warn_renamed(old, new)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        warn_renamed(old, new)
        setattr(self, new, value)

    return property(read, write)


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name is a former one.

    Args:
        old: the former name.
        new: the name.
        stacklevel: of the frame to name, counted from here, as ``warnings.warn`` takes it.
    """
    warnings.warn(f"{old} is now {new}; the old name goes in the next release.", DeprecationWarning, stacklevel)
