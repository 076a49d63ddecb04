"""Rules for the intensities: what each channel is, and how it is normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan import Evidence

MODALITIES = ("CT", "MR", "PET", "other")


def decide_modality(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take the fingerprint's guess for each channel."""
    channels = evidence.fingerprint["channels"]
    return [channel["modality"] for channel in channels], "guessed by names and values of the channels"


def decide_intensity(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Clip CT to the foreground's percentiles and use its mean and std; others by each image's own."""
    if "intensity" in evidence.stated:
        return [
            dict(evidence.stated["intensity"]) for _ in plan["modality"]
        ], "as the pretrained encoder's authors have it"
    schemes, reasons = [], []
    for kind, facts in zip(plan["modality"], evidence.fingerprint["channels"]):
        if kind == "CT":
            schemes.append(_clip(facts))
            reasons.append("CT: clipped to 0.5 and 99.5 % of the labelled voxels, their mean and std")
        elif facts["background_is_constant"]:
            schemes.append({"scheme": "z_nonzero"})
            reasons.append(f"{kind}: mean and std of the image's voxels that are not 0, as the background is")
        else:
            schemes.append({"scheme": "z"})
            reasons.append(f"{kind}: the image's own mean and std")
    return schemes, "; ".join(dict.fromkeys(reasons))


def _clip(facts: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {"low": facts["percentiles"]["0.5"], "high": facts["percentiles"]["99.5"]}
    numbers |= {"mean": facts["mean"], "std": facts["std"]}
    rounded = {key: float(f"{value:.5g}") for key, value in numbers.items()}
    if rounded["low"] >= rounded["high"] or rounded["std"] <= 0:  # labelled voxels of one value
        return {"scheme": "z"}
    return {"scheme": "clip_z", **rounded}
