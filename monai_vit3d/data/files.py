"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Open a file of the same folder to write to; at the end it is flushed to disk and moved over ``path`` in one step.

    Args:
        path: the final name; its folder is made if it is not there.
        mode: ``"wb"`` or ``"w"``.
        options: other keywords of ``open``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # one name: what a killed process leaves is overwritten by the next
    try:
        with part.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk's error does not say which file
        part.unlink(missing_ok=True)
        raise


def write_text_atomic(text: str, path: str | Path) -> None:
    """Write UTF-8, all of it or nothing.

    Args:
        text: the whole content.
        path: the file; its folder is made if it is not there.
    """
    with replacing(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
