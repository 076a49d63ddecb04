"""Write the report of embedded scans: report.html, with the pictures and the map of their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .page import Record, picture_source, run_facts, write_run_page


def write_embedding_report(
    records: Iterable[Record], run: Record, output: str | Path, features_map: str | None = None
) -> None:
    """Write ``report.html`` of an embedding run, as :func:`~monai_vit3d.pipeline.report.page.write_report` does.

    Args:
        records: see there; of each also "windows".
        run: see there; in place of the bundle "model_name", "model", "license", "feature", "pooling", "recipe",
            "kinds".
        output: OUT.
        features_map: the picture of where the vectors lie, below OUT.
    """
    model = run.get("model") or {}
    facts = [
        ("Model", model.get("title")),
        ("Licence", run.get("license")),
        ("Weights", f"sha256 {run['weights_sha256'][:12]}…" if run.get("weights_sha256") else ""),
        ("Vector", str(run.get("feature") or "").replace("_", " ")),
        ("Pooling", run.get("pooling")),
        ("Preparation", describe_recipe(run.get("recipe") or {})),
        *run_facts(run),
    ]
    title = str(run.get("model_name") or "unnamed model")
    has_tokens = len(run.get("kinds") or ()) > 1
    map_src = picture_source(features_map, Path(output), embedded=True)
    values = {"title": title, "facts": facts, "has_tokens": has_tokens, "map_src": map_src}
    write_run_page("embeddings.html.j2", records, run, output, **values)


def describe_recipe(recipe: Mapping[str, Any]) -> str:
    """Write a recipe in a line: ``RAS; resample spacing_mm 1, 1, 1; z_score``, with what was stated for its blanks."""
    stated = recipe.get("stated") or {}

    def text(key: str, value: Any) -> str:
        value = stated.get(key) if value is None else value
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {text(name, of)}" for name, of in value.items())
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    steps = [f"{name} {text(name, of)}".strip() for step in recipe.get("steps") or () for name, of in step.items()]
    orientation = text("orientation", recipe.get("orientation"))
    return "; ".join([orientation, *steps]) if recipe else ""
