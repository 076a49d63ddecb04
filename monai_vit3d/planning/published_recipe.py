"""What a published encoder's authors state of its input, in a plan's terms: orientation, spacing, intensities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_vit3d.data.published_models import published_models


def stated_input(pretrained: str, encoder_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stated of a published model's input, as far as a plan has it.

    Args:
        pretrained: the name of the model, or its file.
        encoder_options: ``published`` has the name where ``pretrained`` is a file.

    Returns:
        ``orientation`` as axcodes, ``spacing_mm`` along its axes, and ``intensity``, the scheme of each channel;
        nothing of other encoders.
    """
    model = published_models().get(str(encoder_options.get("published", pretrained)))
    if model is None or model.recipe is None:
        return {}
    steps = {key: value for step in model.recipe.get("steps") or () for key, value in step.items()}
    orientation = model.recipe.get("orientation")
    spacing = _usable_spacing((steps.get("resample") or {}).get("spacing_mm"), orientation)
    stated = {"orientation": orientation, "spacing_mm": spacing, "intensity": _scheme(steps)}
    return {key: value for key, value in stated.items() if value}


def _usable_spacing(spacing: Any, orientation: str | None) -> list[float] | None:
    """Return a spacing that is the same along all axes, or whose axes are known; else None."""
    is_known = bool(spacing) and None not in spacing and (len(set(spacing)) == 1 or orientation is not None)
    return [float(mm) for mm in spacing] if is_known else None


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
