"""Find the bundles that come with this package, by name.

The wheel holds equal files of weights once (``exclude_package_data`` in setup.cfg). A bundle that lacks one is copied
to the user's cache and completed there by the other bundle's file with the SHA-256 that its metadata.json states.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from monai_vit3d.data.files import cache_folder

from .metadata import read_metadata

_PACKAGE = Path(__file__).resolve().parents[1]
# where the installed package has them, and a clone of its repository
_FOLDERS = (_PACKAGE / "bundles", _PACKAGE.parent / "bundles")


def shipped_bundles() -> dict[str, Path]:
    """List the bundles that come with this package: name and folder, by name; :func:`find_bundle` completes one."""
    root = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {path.parents[1].name: path.parents[1] for path in sorted(root.glob("*/configs/metadata.json"))}


def shipped_weights(folder: Path) -> dict[str, Path]:
    """Map the weights that a shipped bundle's metadata.json names to their files, in it or in another such bundle."""
    by_sum = {
        sha256: other / name
        for other in (*shipped_bundles().values(), folder)
        for name, sha256 in _weights_sha256(other).items()
        if (other / name).is_file()
    }
    return {name: by_sum[sha256] for name, sha256 in _weights_sha256(folder).items()}


def find_bundle(bundle: str | Path) -> Path:
    """Return the folder of a bundle that comes with this package, by its name; any other path as it is.

    Args:
        bundle: a path, or a name of :func:`shipped_bundles`. What exists under that path comes first.
    """
    path = Path(bundle)
    folder = None if path.exists() else shipped_bundles().get(str(path))
    return path if folder is None else _completed(folder)


def _weights_sha256(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of weights that a bundle's metadata.json states."""
    return read_metadata(folder).content.get("weights_sha256", {})


def _completed(folder: Path) -> Path:
    """The folder if it has all its weights, else a copy of it that has, made once for each content."""
    weights = shipped_weights(folder)
    if all(path.is_relative_to(folder) for path in weights.values()):
        return folder
    others = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    digest = hashlib.sha256()  # of all but the weights: their sums stand in metadata.json
    for name, path in others.items():
        if name not in weights:
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    cache = cache_folder() / "bundles"
    copy = cache / digest.hexdigest()[:16] / folder.name
    if not copy.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as part:
            for name, path in (others | weights).items():
                target = Path(part, "whole", folder.name, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            try:
                Path(part, "whole").rename(copy.parent)
            except OSError:
                if not copy.is_dir():  # else another process was first
                    raise
    return copy
