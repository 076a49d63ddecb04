"""Find bundles by name: those that come with this package, and those of the hub.

The wheel holds equal files of weights once (``exclude_package_data`` in setup.cfg). A bundle that lacks one is copied
to the user's cache and completed there by the other bundle's file with the SHA-256 that its metadata.json states.
"""

from __future__ import annotations

from pathlib import Path

from .content import content_files, content_sha256, copied_once
from .hub_bundle import HUB_PREFIX, fetch_bundle
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
    """Return the folder of a bundle that comes with this package or from the hub, by its name; any other path as it is.

    Args:
        bundle: a path, a name of :func:`shipped_bundles`, or one as :func:`~.hub_bundle.fetch_bundle` takes it. What
            exists under that path comes first.

    Raises:
        BundleError: as :func:`~.hub_bundle.fetch_bundle`.
    """
    path = Path(bundle)
    if str(path).startswith(HUB_PREFIX) and not path.exists():
        return fetch_bundle(str(path))
    folder = None if path.exists() else shipped_bundles().get(str(path))
    return path if folder is None else _completed(folder)


def bundle_location(bundle: str | Path) -> str:
    """Return where a bundle comes from, as a text: its name on the hub, or its absolute path."""
    return str(bundle) if str(bundle).startswith(HUB_PREFIX) else str(find_bundle(bundle).absolute())


def _weights_sha256(folder: Path) -> dict[str, str]:
    """Read the SHA-256 of each file of weights from a bundle's metadata.json."""
    return read_metadata(folder).content.get("weights_sha256", {})


def _completed(folder: Path) -> Path:
    """Return the folder if it has all its weights, else a copy of it that has, made once for each content."""
    weights = shipped_weights(folder)
    if all(path.is_relative_to(folder) for path in weights.values()):
        return folder
    files = content_files(folder) | weights
    return copied_once(files, folder.name, content_sha256(files, _weights_sha256(folder)))
