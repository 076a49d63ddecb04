"""Describe bundles: which there are, what one is for, what it needs, and whether it runs with ``safe``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import BundleError, WeightsError
from monai_vit3d.data.files import file_sha256

from .config import AS_SHIPPED, Choice, choice_of, has_inference, read_parser
from .content import content_files, content_sha256
from .kinds import Kind, kind_of
from .load import BundleSteps, load_bundle, load_steps
from .metadata import Metadata, read_metadata
from .shipped import shipped_bundles, shipped_weights
from .unpack import open_bundle


def list_bundles() -> list[dict[str, Any]]:
    """List the bundles that come with this package: name, task, weights' size, licence, and scores where there are."""
    listed = []
    for name, folder in shipped_bundles().items():
        content = read_metadata(folder).content
        listed.append(
            {
                "name": name,
                "task": content.get("task", ""),
                "weights_bytes": sum(path.stat().st_size for path in shipped_weights(folder).values()),
                "licence": _licence_title(folder),
                "scores": content.get("eval_metrics", {}),
            }
        )
    return listed


def _licence_title(folder: Path) -> str:
    """Return the name that stands above a bundle's licence, in its first two lines with text: name and version."""
    lines = (line.strip() for line in (folder / "LICENSE").read_text("utf-8").splitlines())
    title, version = itertools.islice(filter(None, lines), 2)
    return f"{title} {version.removeprefix('Version ').partition(',')[0]}"


def describe_bundle(
    bundle: str | Path, config: str | Sequence[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Describe a bundle in a line for each thing that one wants to know before a run.

    Args:
        bundle: the bundle's folder, zip or name, as :func:`~.shipped.find_bundle` takes it.
        config: config files of the bundle, as for :func:`~.folder.predict_folder`.
        overrides: values to set in the config.

    Raises:
        BundleError: no bundle.
    """
    choice = choice_of(config, overrides)
    with open_bundle(bundle) as root:
        metadata = read_metadata(root)
        kind = _kind(root, choice, metadata)
        steps = _safe_steps(root, choice) if kind.served and not metadata.classifies else None
        content = metadata.content
        lines = {
            "name": metadata.name,
            "version": metadata.version,
            "content": f"SHA-256 {content_sha256(content_files(root))}",
            "kind": kind.text,
            "task": str(content.get("task", "unknown")),
            "input": f"{metadata.channels} image(s): {content.get('image_classes', 'unknown')}",
            "answer": kind.gives if kind.served else f"{kind.gives}; not by vit3d predict",
            "names": _names(metadata, steps),
            "data": str(content.get("data_source", "unknown")),
            "use": str(content.get("intended_use", "unknown")),
        }
        return lines | (_weights_and_safety(root, choice) if kind.served else {})


def _kind(root: Path, choice: Choice, metadata: Metadata) -> Kind:
    if choice == AS_SHIPPED and not has_inference(root) and (root / "configs").is_dir():
        return Kind("training only", "no inference config")
    return kind_of(read_parser(root, choice, "cpu").get(), metadata)


def _safe_steps(root: Path, choice: Choice) -> BundleSteps | None:
    """Build a bundle's steps if they are settings only; None if they are not, or cannot be built."""
    try:
        return load_steps(root, True, choice)
    except BundleError:
        return None


def _names(metadata: Metadata, steps: BundleSteps | None) -> str:
    """Name the label values after all steps, or a classifier's classes."""
    channels = _listed(metadata.channel_names) or "unknown"
    if metadata.classifies or not metadata.channel_names:
        return channels
    classes = metadata.output_channels
    values = steps.value_names(classes) if steps is not None and classes is not None else None
    if values is None or not values.names:
        return f"{channels} (channels of the network; label values may differ)"
    return _listed({0: values.background, **values.names} if values.background else values.names)


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in sorted(names.items()))


def _weights_and_safety(root: Path, choice: Choice) -> dict[str, str]:
    try:
        loaded = load_bundle(root, "cpu", True, choice)
        files = ", ".join(f"{file.path.name}, SHA-256 {file.sha256}" for file in loaded.weights.all_files)
        return {"weights": files, "--safe": "runs"}
    except BundleError as error:
        shipped = sorted((root / "models").glob("*.pt"))
        weights = ", ".join(f"{path.name}, SHA-256 {file_sha256(path)}" for path in shipped) or "none"
        return {"--safe": f"refused: {' '.join(map(str.strip, error.lines))}", "weights": weights}
    except WeightsError as error:  # of the config alone: it was checked first
        return {"weights": f"cannot be used: {error}", "--safe": "runs, once there are weights"}
