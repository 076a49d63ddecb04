"""Where Python looks for modules: never in the folder that one happens to be in, nor in a stranger's bundle.

MONAI imports optional packages by name long after its start, so a file ``itk.py`` in such a folder would run.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_folders(*folders: str | os.PathLike[str]) -> Iterator[None]:
    """Within the ``with`` block, import nothing from the current folder and from these; installed packages stay.

    Args:
        folders: with all that is below them, but for Python environments there.
    """
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if _is_trusted(entry, [os.path.realpath(folder) for folder in folders])]
    try:
        yield
    finally:
        sys.path[:] = before


def _is_trusted(entry: str, folders: list[str]) -> bool:
    """Whether modules may come from an entry: an absolute path, outside the folders or of installed packages."""
    place = os.path.realpath(entry)
    if not os.path.isabs(entry) or place == os.path.realpath(os.getcwd()):
        return False
    environments = [os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)]
    installed = any(_lies_in(place, one) for one in environments) or os.path.basename(place) == "site-packages"
    return installed or not any(_lies_in(place, folder) for folder in folders)


def _lies_in(place: str, folder: str) -> bool:
    return place == folder or place.startswith(os.path.join(folder, ""))
