"""A bundle's own Python files: make them importable, and list them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_importable: list[str] = []  # the folder on sys.path: of the bundle that was loaded last


def add_to_sys_path(root: Path) -> None:
    """Put a bundle's folder on ``sys.path``, so that its config can import from it, as under ``monai.bundle run``.

    The folder and modules of the previous bundle are removed: most bundles call theirs ``scripts``.

    Args:
        root: the bundle's folder.
    """
    for old in _importable:
        sys.path[:] = [path for path in sys.path if path != old]
        for name in [name for name, module in list(sys.modules.items()) if _comes_from(module, old)]:
            del sys.modules[name]
    _importable[:] = [str(root.resolve())]
    sys.path.insert(0, _importable[0])
    importlib.invalidate_caches()


def python_files(root: Path) -> Iterator[Path]:
    """List a bundle's Python files, sorted, without those of hidden folders and of Python environments."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and not (Path(folder) / n / "pyvenv.cfg").exists())
        yield from (Path(folder) / file for file in sorted(files) if file.endswith(".py"))


def _comes_from(module: object, root: str) -> bool:
    names = getattr(module, "__dict__", {})
    if str(names.get("__name__")).partition(".")[0] == __name__.partition(".")[0]:
        return False
    paths = [names.get("__file__"), *(names.get("__path__") or ())]
    inside = [str(path)[len(root) :] for path in paths if str(path).startswith(root + os.sep)]
    return any("site-packages" not in path for path in inside)
