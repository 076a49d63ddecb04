"""Keep Python from importing modules out of the current folder or of a bundle.

MONAI imports optional packages by name long after its start, so a file ``itk.py`` in such a folder would run.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_folders(*folders: str | os.PathLike[str]) -> Iterator[None]:
    """Import nothing from the current folder and from these within the ``with`` block; installed packages stay.

    Args:
        folders: folders with all subfolders, except Python environments in them.
    """
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if _is_trusted(entry, [os.path.realpath(folder) for folder in folders])]
    try:
        yield
    finally:
        sys.path[:] = before


def _is_trusted(entry: str, folders: list[str]) -> bool:
    """Return whether modules may come from an entry: an absolute path, outside the folders or of installed packages."""
    path = os.path.realpath(entry)
    if not os.path.isabs(entry) or path == os.path.realpath(os.getcwd()):
        return False
    environments = [os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)]
    installed = any(_is_below(path, prefix) for prefix in environments) or os.path.basename(path) == "site-packages"
    return installed or not any(_is_below(path, folder) for folder in folders)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
