"""What a bundle is for, what it needs, and whether it runs under --safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.errors import BundleError, WeightsError
from ..data.files import file_sha256
from .bundle import load_bundle
from .config import AS_SHIPPED, Choice, choice_of, has_inference, read_parser
from .kinds import Kind, kind_of
from .metadata import Metadata, read_metadata
from .unpack import open_bundle


def describe_bundle(
    bundle: str | Path, config: str | Sequence[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """A line for each thing that one wants to know before a run.

    Args:
        bundle: the bundle's folder or zip.
        config: config files of the bundle, as for :func:`~.folder.predict_folder`.
        overrides: values to set in the config.

    Raises:
        BundleError: no bundle.
    """
    choice = choice_of(config, overrides)
    with open_bundle(bundle) as root:
        metadata = read_metadata(root)
        kind = _kind(root, choice, metadata)
        content = metadata.content
        lines = {
            "name": metadata.name,
            "version": metadata.version,
            "kind": kind.text,
            "task": str(content.get("task", "unknown")),
            "input": f"{metadata.channels} image(s): {content.get('image_classes', 'unknown')}",
            "answer": kind.gives if kind.served else f"{kind.gives}; not by vit3d predict",
            "names": ", ".join(f"{value} {name}" for value, name in metadata.channel_names.items()) or "unknown",
            "data": str(content.get("data_source", "unknown")),
            "use": str(content.get("intended_use", "unknown")),
        }
        if not kind.served:
            return lines
        try:
            loaded = load_bundle(root, "cpu", True, choice)
            lines |= {"weights": f"{loaded.weights.name}, SHA-256 {loaded.weights_sha256}", "--safe": "runs"}
        except BundleError as error:
            lines |= {"--safe": f"refused: {error}"}
            shipped = sorted((root / "models").glob("*.pt"))
            lines |= {"weights": ", ".join(f"{path.name}, SHA-256 {file_sha256(path)}" for path in shipped) or "none"}
        except WeightsError as error:  # of the config alone: it was checked first
            lines |= {"weights": f"cannot be used: {error}", "--safe": "runs, once there are weights"}
    return lines


def _kind(root: Path, choice: Choice, metadata: Metadata) -> Kind:
    if choice == AS_SHIPPED and not has_inference(root) and (root / "configs").is_dir():
        return Kind("training only", "no inference config")
    return kind_of(read_parser(root, choice, "cpu").get(), metadata)
