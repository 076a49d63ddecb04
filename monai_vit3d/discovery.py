"""Let timm and MONAI find this package's names after a bare ``import monai_vit3d``, which loads neither.

importlib's LazyLoader does not serve: it loads a module as soon as anything looks at its ``__spec__`` or ``__file__``,
as everything does that walks ``sys.modules``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
TIMM_NAMES = ("vit3d_tiny", "vit3d_small", "vit3d_base", "vit3d_large", "vit3d_huge")
_COMMON: dict[str, Any] = {
    **{"input_size": (1, 96, 96, 96), "fixed_input_size": True, "num_classes": 0, "interpolation": "trilinear"},
    **{"mean": (0.0,), "std": (1.0,), "crop_pct": 1.0, "first_conv": "patch_embed.proj", "classifier": "head"},
}
# timm reads this from the module of what it registers
default_cfgs: dict[str, dict[str, Any]] = {name: dict(_COMMON) for name in TIMM_NAMES}


def announce(modules: Iterable[str]) -> None:
    """Register the presets in timm once it is imported, and show the public modules to MONAI's ComponentLocator.

    Args:
        modules: full names of the modules that define public names.
    """
    for name in modules:
        sys.modules.setdefault(name, _OnDemand(name))
    if "timm" in sys.modules:
        register_models()
    else:
        sys.meta_path.insert(0, _AfterImport("timm", register_models))


def register_models() -> None:
    """Register presets and published models in timm; the code that builds them is imported when one is created."""
    from timm.models import register_model

    for name in TIMM_NAMES:
        globals()[name] = register_model(_entry(name, "build_for_timm"))
    for entry in importlib.import_module(f"{PACKAGE}.data.published_models").published_models().values():
        if entry.file is None or entry.unsupported:
            continue
        default_cfgs[entry.name] = {
            **_COMMON,
            **{"input_size": entry.input_size, **entry.statistics},
            **{"hf_hub_id": entry.repository, "hf_hub_filename": entry.file, "license": entry.licence.weights},
        }
        globals()[entry.name] = register_model(_entry(entry.name, "published_for_timm"))


def _entry(name: str, builder: str) -> Callable[..., Any]:
    def entry(*args: Any, **options: Any) -> Any:
        """One of monai_vit3d's models; takes any keyword of VisionTransformer3D."""
        return getattr(importlib.import_module(f"{PACKAGE}.weights.timm_models"), builder)(name, *args, **options)

    entry.__name__ = entry.__qualname__ = name
    return entry


class _OnDemand(ModuleType):
    """A stand-in in ``sys.modules`` that imports its module when one of its attributes is read."""

    def _load(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what only looks at all modules is not to load this one
            raise AttributeError(name)
        return getattr(self._load(), name)

    def __dir__(self) -> list[str]:
        return dir(self._load())


class _AfterImport(MetaPathFinder):
    """An import hook that calls a function once, after a module was imported."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's usual spec, with the function called after its execution."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)  # so that the other finders are asked
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # whoever asks for the spec may not import the module
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                sys.meta_path.remove(self)
                execute(module)
                self.action()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
