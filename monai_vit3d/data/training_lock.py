"""Lock a folder so that one training at a time writes to it."""

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

    On network file systems the lock holds between machines if the system's ``flock`` does (NFS 4, and NFS 3 with its
    lock daemon; not with the mount options ``nolock`` and ``local_lock``). On a disk without locks a warning is logged
    and the training goes on.

    Args:
        path: a file that the training writes; its folder is created if needed.

    Raises:
        UsageError: another process holds it, or a link lies where the lock file is expected.
    """
    lock_file = _lock_file(path)
    if lock_file in _held:
        return
    os.makedirs(os.path.dirname(lock_file), exist_ok=True)
    if os.path.islink(lock_file):
        raise UsageError(
            f"{lock_file}: a link where a lock file is expected. Remove it, or choose another output folder."
        )
    lock = FileLock(lock_file)
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
    _held[lock_file] = lock


def unlock_training(path: str | Path) -> None:
    """Release a file of :func:`lock_training`.

    Args:
        path: as given there.
    """
    lock = _held.pop(_lock_file(path), None)
    if lock is not None:
        lock.release()


def _lock_file(path: str | Path) -> str:
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.lock")
