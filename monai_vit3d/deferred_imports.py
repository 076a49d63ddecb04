"""Let ``vit3d predict`` start without running what it does not use: packages run when something of them is asked for.

``import monai`` imports all of MONAI and what that tries to use (transformers, pandas, TensorBoard, ...), ``timm``
all of its networks: several times what a small volume takes. After :func:`defer_imports` the packages of ``DEFERRED``
are put into ``sys.modules`` empty. Asked for a name, such a package imports the one module that its ``__init__`` takes
the name from, where a row says that its ``__init__`` only does that, or runs its ``__init__``, after its parents'. So
each name is the object that it always is. :func:`run_deferred` ends it for a package: MONAI's own search for a class by
its bare name goes through the modules that are loaded.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_ANY = ("*",)


class DeferredPackage(NamedTuple):
    """What may be had of a package that has not run.

    Attributes:
        submodules: that may be imported, ``_ANY`` for all; others run the package first, as Python does.
        only_collects: whether its ``__init__`` does nothing but take names from other modules and define some.
        distribution: whose version is its ``__version__``.
        called_later: functions and classes that other packages import by name, and call in few cases.
    """

    submodules: tuple[str, ...] = ()
    only_collects: bool = False
    distribution: str = ""
    called_later: tuple[str, ...] = ()


_COLLECTING = (
    "ignite.engine", "monai.apps", "monai.auto3dseg", "monai.bundle", "monai.config", "monai.engines", "monai.handlers",
    "monai.inferers", "monai.losses", "monai.metrics", "monai.networks", "monai.networks.blocks",
    "monai.networks.layers", "monai.networks.nets", "monai.optimizers", "monai.transforms", "monai.utils",
    "monai.visualize", "timm.data",
)  # fmt: skip
DEFERRED = {
    **dict.fromkeys(_COLLECTING, DeferredPackage(_ANY, only_collects=True)),
    "bs4": DeferredPackage(called_later=("BeautifulSoup",)),
    "ignite": DeferredPackage(_ANY, distribution="pytorch-ignite"),
    "monai": DeferredPackage(_ANY, distribution="monai"),
    "openvino.tools.ovc": DeferredPackage(called_later=("convert_model",)),
    "pandas": DeferredPackage(called_later=("DataFrame",)),
    "pydicom": DeferredPackage(called_later=("Dataset",)),
    "requests": DeferredPackage(),
    "scipy.signal": DeferredPackage(called_later=("hilbert", "iirnotch")),
    "scipy.sparse.linalg": DeferredPackage(called_later=("cg", "spsolve")),
    "skimage.exposure": DeferredPackage(),
    "skimage.morphology": DeferredPackage(("_util",)),
    "tifffile": DeferredPackage(called_later=("TiffFile",)),
    "timm": DeferredPackage(_ANY, distribution="timm"),
    "timm.models": DeferredPackage(_ANY),
    "timm.models._hub": DeferredPackage(
        called_later=(
            *("check_cached_file", "download_cached_file", "has_hf_hub", "load_custom_from_hf"),
            *("load_state_dict_from_hf", "load_state_dict_from_path"),
        )
    ),
    "torch.export": DeferredPackage(),
    # timm's layers need two files of it, and the rest imports torch._dynamo
    "torchvision": DeferredPackage(("models", "ops", "utils")),
    "torchvision.models": DeferredPackage(("feature_extraction",)),
    "torchvision.ops": DeferredPackage(("misc",)),
}
_RUN = "deferred:"  # before a name with / for its dots: the import that runs the package


def defer_imports() -> None:
    """Defer the packages of ``DEFERRED`` from now on; those that are imported already stay as they are."""
    if not any(isinstance(finder, _DeferringFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeferringFinder())


def is_deferred(name: str) -> bool:
    """Whether a package is in ``sys.modules`` and has not run."""
    return isinstance(sys.modules.get(name), _Deferred)


def run_deferred(name: str) -> None:
    """Run a package, after its parents, if it is deferred."""
    parent = name.rpartition(".")[0]
    if parent:
        run_deferred(parent)
    if is_deferred(name):
        # an import, so that other threads wait for its end; importlib knows when two wait for each other
        importlib.import_module(_RUN + name.replace(".", "/"))


def run_all_deferred(root: str) -> None:
    """Run a package and all that is deferred in it."""
    for name in (root, *(name for name in DEFERRED if name.startswith(f"{root}."))):
        run_deferred(name)


def find_collected(package: str, name: str) -> Any:
    """Return what a package has under a name, None if nothing; a deferred one is not run for the answer."""
    module = importlib.import_module(package)
    if not isinstance(module, _Deferred) or name in vars(module):
        return vars(module).get(name)
    return getattr(module, name) if name in module.sources() else None


class _Deferred(ModuleType):
    """A package that has not run; what it has already is found without :meth:`__getattr__`."""

    def __getattr__(self, name: str) -> Any:
        full, row = self.__name__, DEFERRED[self.__name__]
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {full!r} has no attribute {name!r}")  # what only looks is not to run it
        if name == "__version__" and row.distribution:
            return version(row.distribution)
        if name in row.called_later:
            return _Later(full, name)
        if row.only_collects and name in (sources := self.sources()):
            module, original = sources[name]
            value = getattr(importlib.import_module(module, full), original)
            setattr(self, name, value)
            return value
        if _may_import(row, name) and importlib.util.find_spec(f"{full}.{name}") is not None:
            return importlib.import_module(f"{full}.{name}")
        run_deferred(full)
        if name in vars(self):
            return vars(self)[name]
        if isinstance(self, _Deferred):  # it runs now, in this thread: a circular import
            raise AttributeError(f"partially initialized module {full!r} has no attribute {name!r}")
        return getattr(self, name)  # a module's own __getattr__

    def __dir__(self) -> list[str]:
        run_deferred(self.__name__)
        return dir(sys.modules[self.__name__]) if not is_deferred(self.__name__) else list(vars(self))

    def sources(self) -> dict[str, tuple[str, str]]:
        """Map each name that its ``__init__`` takes from another module to that module and its name there."""
        if "_names" not in vars(self):
            self._names = collected_names(Path(str(self.__file__)))
        return self._names


def collected_names(path: Path) -> dict[str, tuple[str, str]]:
    """Map each name that an ``__init__.py`` takes from another module to that module and its name there.

    Of ``from .module import *`` it reads the module, and has the names that are defined there.
    """
    names: dict[str, tuple[str, str]] = {}
    for node in ast.parse(path.read_bytes()).body:
        for name in _defined(node):
            names.pop(name, None)
        if not isinstance(node, ast.ImportFrom):
            continue
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name != "*":
                names[alias.asname or alias.name] = (module, alias.name)
            elif (source := path.parent / f"{node.module}.py").is_file():
                body = ast.parse(source.read_bytes()).body
                defined = (name for part in body for name in _defined(part) if not name.startswith("_"))
                names |= {name: (module, name) for name in defined}
    return names


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _may_import(row: DeferredPackage, child: str) -> bool:
    return row.submodules == _ANY or child in row.submodules


class _Later:
    """A function or class of a deferred package, which runs when this is used."""

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def _real(self) -> Any:
        run_deferred(self._package)
        return getattr(importlib.import_module(self._package), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, cls: type) -> bool:
        return issubclass(cls, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)


class _DeferringFinder(MetaPathFinder):
    """Finds the packages of ``DEFERRED``, and runs one when a submodule is imported that needs it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec that makes an empty package; None leaves a module to the other finders."""
        if fullname.startswith(_RUN):
            return ModuleSpec(fullname, _Run(fullname.removeprefix(_RUN).replace("/", ".")))
        if f"{_RUN}{fullname.partition('.')[0]}" in sys.modules:
            return None  # it runs, or has run: its parts are imported as always
        if fullname not in DEFERRED:
            parent, _, child = fullname.rpartition(".")
            if is_deferred(parent) and not _may_import(DEFERRED[parent], child):
                run_deferred(parent)
                if fullname in sys.modules:  # its parent has imported it; importlib would run it once more
                    return ModuleSpec(fullname, _Imported(sys.modules.pop(fullname)))
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = _Deferring(spec.loader)
        return spec


class _Deferring(Loader):
    """Makes a package that has not run."""

    def __init__(self, loader: Any) -> None:
        self.real = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the empty package; its path is there before anything looks for it."""
        module = _Deferred(spec.name)
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)  # resources and sources are there


class _Imported(Loader):
    """Gives a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def exec_module(self, module: ModuleType) -> None:
        """Put the module back, as importlib lets a module replace itself."""
        sys.modules[module.__name__] = self.module


class _Run(Loader):
    """Runs a deferred package."""

    def __init__(self, name: str) -> None:
        self.name = name

    def exec_module(self, module: ModuleType) -> None:
        """Run its ``__init__``; it stays deferred if that fails, and is tried again when it is next asked."""
        package = sys.modules[self.name]
        spec: Any = package.__spec__
        loader = spec.loader.real
        loader.exec_module(package)
        package.__class__ = ModuleType
        package.__loader__ = spec.loader = loader
