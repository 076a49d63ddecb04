"""The files of a bundle as one content: its SHA-256, and whole copies of it in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from monai_vit3d.data.files import cache_folder, file_sha256


def content_files(folder: Path) -> dict[str, Path]:
    """Map the files of a folder, but for hidden ones and Python's caches, by their paths below it."""
    files: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        found = (Path(parent, name) for name in names if not name.startswith("."))
        files |= {path.relative_to(folder).as_posix(): path for path in found}
    return dict(sorted(files.items()))


def content_sha256(files: Mapping[str, Path], known: Mapping[str, str] | None = None) -> str:
    """Compute the SHA-256 of what ``sha256sum`` prints of all files, sorted by their names' bytes.

    Args:
        files: of :func:`content_files`.
        known: SHA-256 of some of them, by name.
    """
    sums = {name: (known or {}).get(name) or file_sha256(path) for name, path in files.items()}
    lines = [f"{sums[name]}  {name}\n".encode() for name in sorted(sums, key=str.encode)]
    return hashlib.sha256(b"".join(lines)).hexdigest()


def copied_once(files: Mapping[str, Path], name: str, sha256: str) -> Path:
    """Copy files into a folder of the user's cache, whole or not at all, unless that was done before.

    Args:
        files: by their paths below the copy.
        name: of the copy.
        sha256: of the content; each has a folder of its own.
    """
    cache = cache_folder() / "bundles"
    copy = cache / sha256[:16] / name
    if not copy.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as part:
            for relative, path in files.items():
                target = Path(part, "whole", name, relative)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            try:
                Path(part, "whole").rename(copy.parent)
            except OSError:
                if not copy.is_dir():  # else another process was first
                    raise
    return copy
