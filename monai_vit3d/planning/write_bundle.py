"""Write a planned bundle: its configs, its split and its documentation, all or nothing."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import UsageError

from .bundle_metadata import SHARED, bundle_metadata
from .dataset import LabelledCase, LabelledDataset
from .folds import assign_folds
from .plan import TrainingPlan, show_value

# decisions that are in no config: those that others were made from, and those that went into other files
NOT_TRAINING = {"device", "memory_gb", "folds", "modality", "preset", "window", *SHARED}
# under one name in train.yaml
NETWORK_OPTIONS = ("patch_size", "embed_dim", "depth", "num_heads", "embed_layer")


def write_bundle(
    dataset: LabelledDataset, fingerprint: Mapping[str, Any], plan: TrainingPlan, output: str | Path
) -> Path:
    """Write a bundle; if anything fails, nothing is left of it.

    Args:
        dataset: the labelled cases.
        fingerprint: what was measured of them, kept as ``configs/fingerprint.json``.
        plan: the recipe.
        output: the bundle's folder: a new or an empty one.

    Returns:
        The folder.

    Raises:
        UsageError: the folder is not empty, or is a file.
        OSError: it cannot be written.
    """
    output = Path(os.path.abspath(output))
    require_new_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.name[:200]}.{secrets.token_hex(8)}.part")
    part.mkdir()
    try:
        for path, text in bundle_files(dataset, fingerprint, plan, output.name).items():
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_text(text, encoding="utf-8", newline="")
        (part / "models").mkdir()
        if output.is_dir():
            output.rmdir()  # empty; fails if someone has written into it meanwhile
        part.rename(output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return output


def require_new_folder(output: Path) -> None:
    """Refuse a place where something lies already.

    Raises:
        UsageError: a file, or a folder that is not empty.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        existing = "a folder that is not empty" if output.is_dir() else "a file or link"
        raise UsageError(f"{output}: {existing}; a bundle is written into a new folder. Choose another output=.")


def bundle_files(
    dataset: LabelledDataset, fingerprint: Mapping[str, Any], plan: TrainingPlan, name: str
) -> dict[str, str]:
    """Return the texts of a bundle's files by their paths in it."""
    contents = {
        "configs/metadata.json": bundle_metadata(dataset, fingerprint, plan, name),
        "configs/split.json": split(dataset, plan["folds"]),
        "configs/fingerprint.json": fingerprint,
    }
    texts = {path: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for path, content in contents.items()}
    context = {"choices": training_block(plan), "name": name, "dataset": dataset, "plan": plan, "lines": plan.lines()}
    return texts | {path: _rendered(template, context) for path, template in _templates(dataset.task).items()}


def _templates(task: str) -> dict[str, str]:
    """Return the templates' texts by their paths in a bundle: documents in their folders, all others in configs."""
    folder = files("monai_vit3d.planning") / "templates"
    homes = {"README.md": "docs/README.md", "LICENSE": "LICENSE"}
    own = "segmentation" if task == "segmentation" else "classification"
    entries = [entry for name in ("common", own) for entry in (folder / name).iterdir() if entry.is_file()]
    return {homes.get(e.name, f"configs/{e.name}"): e.read_text(encoding="utf-8") for e in entries}


def _rendered(template: str, context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(template).render(context)


def training_block(plan: TrainingPlan) -> str:
    """Return the decisions that ``train.yaml`` alone has, as YAML."""
    keys = [key for key in plan if key not in NOT_TRAINING and key not in NETWORK_OPTIONS]
    return "\n".join([
        "fold: 0              # validated; the others train",
        *(f"{key}: {show_value(plan[key])}" for key in keys),
        "network_options:",
        *(f"  {key}: {show_value(plan[key])}" for key in NETWORK_OPTIONS),
    ])  # fmt: skip


def split(dataset: LabelledDataset, folds: int) -> dict[str, Any]:
    """Return the content of ``split.json``: training cases with their folds, and those for the test."""
    training, testing = dataset.section("training"), dataset.section("testing")
    return {
        "data_root": str(dataset.root),
        "training": [_entry(c, dataset.root, fold) for c, fold in zip(training, assign_folds(training, folds))],
        "testing": [_entry(case, dataset.root, None) for case in testing if case.label is not None],
    }


def _entry(case: LabelledCase, root: Path, fold: int | None) -> dict[str, Any]:
    label = _relative(case.label, root) if isinstance(case.label, Path) else case.label
    images = [_relative(path, root) for path in case.images]
    return {"name": case.name, "subject": case.subject, "fold": fold, "image": images, "label": label}


def _relative(path: Path, root: Path) -> str:
    """Return a path below the data's folder as such; another as it is."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
