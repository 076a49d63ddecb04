"""What a bundle is for, what it needs, and whether it runs under --safe."""

from __future__ import annotations

from pathlib import Path

from ..data.errors import BundleError, WeightsError
from ..data.files import file_sha256
from .bundle import load_bundle
from .metadata import read_metadata
from .unpack import open_bundle


def describe_bundle(bundle: str | Path) -> dict[str, str]:
    """A line for each thing that one wants to know before a run.

    Args:
        bundle: the bundle's folder or zip.

    Raises:
        BundleError: no bundle.
    """
    with open_bundle(bundle) as root:
        metadata = read_metadata(root)
        content = metadata.content
        lines = {
            "name": metadata.name,
            "version": metadata.version,
            "task": str(content.get("task", "unknown")),
            "input": f"{metadata.channels} image(s): {content.get('image_classes', 'unknown')}",
            "answer": "predictions.csv" if metadata.classifies else "labels on each file's own grid",
            "names": ", ".join(f"{value} {name}" for value, name in metadata.channel_names.items()) or "unknown",
            "data": str(content.get("data_source", "unknown")),
            "use": str(content.get("intended_use", "unknown")),
        }
        try:
            loaded = load_bundle(root, "cpu", safe=True)
            lines |= {"weights": f"{loaded.weights.name}, SHA-256 {loaded.weights_sha256}", "--safe": "runs"}
        except BundleError as error:
            lines |= {"--safe": f"refused: {error}"}
            shipped = sorted((root / "models").glob("*.pt"))
            lines |= {"weights": ", ".join(f"{path.name}, SHA-256 {file_sha256(path)}" for path in shipped) or "none"}
        except WeightsError as error:  # of the config alone: it was checked first
            lines |= {"weights": f"cannot be used: {error}", "--safe": "runs, once there are weights"}
    return lines
