"""Find the bundles that come with this package, by name."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# where the installed package has them, and a clone of its repository
_FOLDERS = (_PACKAGE / "bundles", _PACKAGE.parent / "bundles")


def shipped_bundles() -> dict[str, Path]:
    """List the bundles that come with this package: name and folder, by name."""
    metadata = (path for folder in _FOLDERS for path in folder.glob("*/configs/metadata.json"))
    return {folder.name: folder for folder in sorted(path.parents[1] for path in metadata)}


def find_bundle(bundle: str | Path) -> Path:
    """Return the folder of a bundle that comes with this package, by its name; any other path as it is.

    Args:
        bundle: a path, or a name of :func:`shipped_bundles`. What exists under that path comes first.
    """
    path = Path(bundle)
    return path if path.exists() else shipped_bundles().get(str(path), path)
