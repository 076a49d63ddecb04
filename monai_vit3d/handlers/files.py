"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_text_atomic(text: str, path: str | Path) -> None:
    """Write UTF-8 to a file of the same folder, flushed to disk, then moved over ``path`` in one step.

    Args:
        text: the whole content.
        path: the final name; its folder is made if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # one name: what a killed process leaves is overwritten by the next
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
