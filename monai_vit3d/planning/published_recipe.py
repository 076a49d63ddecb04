"""What the authors of a published encoder state of its input, in a plan's terms: spacing and intensities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_vit3d.data.published_models import published_models

_AXES = ("RL", "AP", "SI")  # of a plan's volumes


def stated_input(pretrained: str, encoder_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stated of a published model's input, as far as a plan has it.

    Args:
        pretrained: the name of the model, or its file.
        encoder_options: ``published`` has the name where ``pretrained`` is a file.

    Returns:
        ``spacing_mm`` along a plan's axes, and ``intensity``, the scheme of each channel; nothing of other encoders.
    """
    model = published_models().get(str(encoder_options.get("published", pretrained)))
    if model is None or model.recipe is None:
        return {}
    steps = {key: value for step in model.recipe.get("steps") or () for key, value in step.items()}
    spacing = _along_plan_axes((steps.get("resample") or {}).get("spacing_mm"), model.recipe.get("orientation"))
    scheme = _scheme(steps)
    return {key: value for key, value in (("spacing_mm", spacing), ("intensity", scheme)) if value}


def _along_plan_axes(spacing: Any, orientation: str | None) -> list[float] | None:
    """Sort a spacing that is stated along the axes of an orientation; None if they are not known."""
    if not spacing or None in spacing:
        return None
    if len(set(spacing)) == 1:
        return [float(mm) for mm in spacing]
    if orientation is None:
        return None
    return [float(next(mm for mm, letter in zip(spacing, orientation) if letter in axis)) for axis in _AXES]


def _scheme(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the scheme of ``NormalizeChannelsd`` that does the same; None where there is none."""
    if "rescale" in steps:
        low, high = map(float, steps["rescale"]["from"])
        first, last = map(float, steps["rescale"]["to"])
        std = (high - low) / (last - first)
        return {"scheme": "clip_z", "low": low, "high": high, "mean": low - first * std, "std": std}
    if "z_score" in steps and "clip" not in steps:
        return {"scheme": "z_nonzero" if steps["z_score"]["nonzero"] else "z"}
    return None
