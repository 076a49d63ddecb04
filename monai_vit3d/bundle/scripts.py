"""A bundle's own Python files: importing them, and naming what they are."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_importable: list[str] = []  # the bundle whose files can be imported, the last one that was loaded


def add_to_sys_path(root: Path) -> None:
    """Let a bundle's config import from its folder, as ``monai.bundle run`` there does.

    The folder and the modules of the bundle before are forgotten: most bundles call theirs ``scripts``.

    Args:
        root: the bundle's folder.
    """
    for old in _importable:
        sys.path[:] = [path for path in sys.path if path != old]
        for name in [name for name, module in sys.modules.items() if _lies_in(module, old)]:
            del sys.modules[name]
    _importable[:] = [str(root.resolve())]
    sys.path.insert(0, _importable[0])
    importlib.invalidate_caches()


def python_files(root: Path) -> Iterator[Path]:
    """A bundle's own, sorted; none of a hidden folder or an environment in it."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and not (Path(folder) / n / "pyvenv.cfg").exists())
        yield from (Path(folder) / file for file in sorted(files) if file.endswith(".py"))


def _lies_in(module: object, root: str) -> bool:
    said = getattr(module, "__dict__", {})
    if str(said.get("__name__")).partition(".")[0] == __name__.partition(".")[0]:
        return False
    places = [said.get("__file__"), *(said.get("__path__") or ())]
    inside = [str(place)[len(root) :] for place in places if str(place).startswith(root + os.sep)]
    return any("site-packages" not in path for path in inside)
