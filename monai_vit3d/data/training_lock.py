"""One training at a time writes a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UsageError

logger = logging.getLogger(__name__)
_held: dict[str, FileLock] = {}  # by this process, which may start anew after an error


def lock_training(path: str | Path) -> None:
    """Keep other processes from writing a file until :func:`unlock_training` or the end of this one, even a crash.

    On network file systems the lock holds between machines where the system's ``flock`` does (NFS 4, and NFS 3 with
    its lock daemon; not with the mount options ``nolock`` and ``local_lock``); where there is none at all, that is
    logged and the training goes on.

    Args:
        path: a file that the training writes; its folder is made if it is not there.

    Raises:
        UsageError: another process holds it, or a link lies where the lock file is expected.
    """
    place = _place(path)
    if place in _held:
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(place):
        raise UsageError(f"{place}: a link where a lock file is expected. Remove it, or choose another output folder.")
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"{path}: another training is writing here, and the two would overwrite each other's weights. Wait for "
            "it, stop it (a notebook, too), or choose another output folder."
        ) from error
    except NotImplementedError as error:
        logger.warning("%s: this disk knows no locks (%s). Start no second training into this folder.", path, error)
        return
    _held[place] = lock


def unlock_training(path: str | Path) -> None:
    """Let others at a file of :func:`lock_training`.

    Args:
        path: as given there.
    """
    lock = _held.pop(_place(path), None)
    if lock is not None:
        lock.release()


def _place(path: str | Path) -> str:
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.lock")
