"""Measure what a bundle was trained on: the ``trained_on`` of its metadata.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.bundle.load import Bundle, load_bundle
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.bundle.trained_on import merge_ranges
from monai_vit3d.data.case_files import read_channels
from monai_vit3d.data.errors import ImageError, UsageError
from monai_vit3d.data.files import write_text_atomic
from monai_vit3d.data.json_files import read_json_file
from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import read_volume, reader_for, without_suffix
from monai_vit3d.data.volume import Array, Volume

from .measures import Values, measure_grid, measure_input, measure_labels
from .stats import label_stats

_NUMBERS = re.compile(r"\[\s+([-+\d.eE,\s]+?)\s+\]")


def measure_training(
    cases: Sequence[Mapping[str, Any]],
    bundle: str | Path | None = None,
    *,
    device: str | None = None,
    safe: bool = False,
    on_case: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Measure a bundle's training cases: images, labels, the network's inputs and the entropy of its predictions.

    Args:
        cases: ``{"image": path or [paths], "label": path}``, as ``decathlon_split`` and MONAI's lists have them; labels
            may be missing, as for classification.
        bundle: the bundle's folder; without one, the network's input and entropy are not measured.
        device: a torch device; None takes a GPU where there is one.
        safe: whether to refuse a bundle whose config is more than settings.
        on_case: called with the number of cases measured so far.

    Returns:
        ``trained_on``: ranges ``[lowest, highest]`` over the cases, by quantity.

    Raises:
        ImageError: an image or label that cannot be used, or lie on different grids.
        UsageError: no cases.
        BundleError: a bundle that cannot be used, or is not safe.
    """
    if not cases:
        raise UsageError("no training cases; images, and labels on their grids, are expected.")
    loaded = None if bundle is None else load_bundle(Path(bundle), device, safe)
    names = {} if loaded is None else loaded.metadata.channel_names
    measured, orientations = [], set()
    for count, case in enumerate(cases, 1):
        images = case["image"] if isinstance(case["image"], list | tuple) else [case["image"]]
        volumes = read_channels([*map(Path, images)], len(images) if loaded is None else loaded.images_per_case)
        orientations.add(axis_letters(volumes[0].grid.affine_mm))
        values = measure_grid(volumes[0].grid)
        if case.get("label") is not None:
            labels = _read_labels(case["label"], volumes[0])
            stats = label_stats(labels, volumes[0].voxels, volumes[0].grid, names)
            values |= measure_labels(labels, volumes[0].voxels, stats)
        if loaded is not None:
            values |= _measure_network(volumes, loaded)
        measured.append(values)
        on_case(count)
    turned = loaded is not None and _turns_input(loaded)
    return {
        "cases": len(measured),
        **({} if turned else {"orientation": sorted(orientations)}),
        **merge_ranges(measured),
    }


def find_cases(
    images: str | Path, labels: str | Path | None = None, split: str | Path | None = None, section: str = "training"
) -> list[dict[str, str]]:
    """List the training cases of two folders.

    Args:
        images: the folder with them.
        labels: the folder with labels, each named as its image.
        split: JSON with lists of names, without suffix, one a section; None takes all images.
        section: which of them.

    Returns:
        As :func:`measure_training` takes them, in the order of their names.

    Raises:
        UsageError: a split without that section, or files that are not there.
    """
    visible = [path for path in sorted(Path(images).glob("*")) if not path.name.startswith(".")]
    paths = {without_suffix(path.name): path for path in visible if reader_for(path)}
    names = list(paths)
    if split is not None:
        content = read_json_file(split, UsageError, "lists of names, one a section")
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            has = ", ".join(map(printable, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
            raise UsageError(f"{split}: no list {section!r}; it has {has or 'nothing'}. Give section=.")
        names = sorted(map(str, content[section]))
    files = [paths.get(name, Path(images) / f"{name}.nii.gz") for name in names]
    cases = [{"image": str(path)} for path in files]
    if labels is not None:
        cases = [{"image": str(path), "label": str(Path(labels) / path.name)} for path in files]
    missing = [path for case in cases for path in case.values() if not Path(path).is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file, and {len(missing) - 1} more. Give the folders that hold them.")
    return cases


def write_trained_on(trained_on: Mapping[str, Any], bundle: str | Path) -> Path:
    """Put ``trained_on`` into a bundle's metadata.json; the rest of it stays.

    Returns:
        The file.

    Raises:
        UsageError: the bundle has no metadata.json.
    """
    path = Path(bundle) / "configs" / "metadata.json"
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Give the folder of a MONAI bundle with its metadata.")
    content = {**read_metadata(Path(bundle)).content, "trained_on": dict(trained_on)}
    write_text_atomic(format_json(content) + "\n", path)
    return path


def format_json(content: Mapping[str, Any]) -> str:
    """Format as JSON, each list of numbers on one line."""
    text = json.dumps(content, indent=4, ensure_ascii=False)
    return _NUMBERS.sub(lambda match: "[" + ", ".join(match[1].replace(",", " ").split()) + "]", text)


def _read_labels(path: str | Path, image: Volume) -> Array:
    labels = read_volume(path, None)
    same = labels.grid.shape == image.grid.shape and np.allclose(labels.grid.affine_mm, image.grid.affine_mm, atol=1e-3)
    if not same:
        raise ImageError(f"{path}: not on the grid of {image.path}. Resample the labels onto the image's grid.")
    whole = np.rint(labels.voxels)
    if not np.array_equal(whole, labels.voxels):
        raise ImageError(f"{path}: fractions; labels are whole numbers. Give the file with labels.")
    return whole.astype(np.int32)


def _measure_network(volumes: Sequence[Volume], bundle: Bundle) -> Values:
    from .inference import infer
    from .options import Options
    from .prepare import prepare

    prepared = prepare(volumes, bundle)
    values = measure_input(prepared.image)
    output = infer(prepared, bundle, Options())
    return values if output.entropy is None else values | {"entropy": output.entropy}


def _turns_input(bundle: Bundle) -> bool:
    from monai.transforms import Orientationd

    return any(isinstance(step, Orientationd) for step in bundle.preprocessing.steps)
