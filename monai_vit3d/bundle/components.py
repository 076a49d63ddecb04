"""Find MONAI's classes by their bare names, as its configs have them, without an import of all of MONAI."""

from __future__ import annotations

import inspect

from monai.bundle.config_item import ComponentLocator

from monai_vit3d.deferred_imports import find_collected, is_deferred, run_all_deferred

# whose names a config for prediction has, mostly
PACKAGES = (
    "monai.transforms",
    "monai.inferers",
    "monai.data",
    "monai.engines",
    "monai.handlers",
    "monai.networks.nets",
)
AMBIGUOUS = ("Affine",)  # names of these packages that MONAI finds in further modules, too


class DeferredLocator(ComponentLocator):
    """MONAI's locator, which asks a few packages for a name before all of MONAI is imported to look through it."""

    def get_component_module_name(self, name: str) -> list[str] | str | None:
        """Return the module of a class or function, a list of several, None for a dotted path or an unknown name."""
        if not is_deferred("monai") or not isinstance(name, str):
            return super().get_component_module_name(name)
        if "." in name:
            return None
        for package in PACKAGES if name not in AMBIGUOUS else ():
            found = find_collected(package, name)
            if (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__.startswith("monai."):
                return str(found.__module__)
        run_all_deferred("monai")
        return super().get_component_module_name(name)
