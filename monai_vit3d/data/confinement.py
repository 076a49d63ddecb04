"""Confine what an untrusted bundle may read to its own folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .errors import BundleError

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def reading_only_below(folder: str | Path) -> Iterator[None]:
    """Make :func:`check_confined` refuse paths outside a folder within the ``with`` block, in this thread.

    Args:
        folder: the bundle's.
    """
    token = _folder.set(Path(os.path.realpath(folder)))
    try:
        yield
    finally:
        _folder.reset(token)


def check_confined(path: str | Path) -> None:
    """Refuse a path that leads out of the folder of :func:`reading_only_below`, also by ``..`` or through links.

    Functions that a config may call with a path call this before they open it.

    Args:
        path: about to be opened.

    Raises:
        BundleError: it leads outside.
    """
    folder = _folder.get()
    if folder is not None and not Path(os.path.realpath(path)).is_relative_to(folder):
        raise BundleError(
            f"{path}: outside the bundle {folder}; with safe=True a bundle reads its own files only. Put the file into "
            "the bundle, or run without safe=True if you trust it."
        )
