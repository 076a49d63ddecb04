"""Guess what kind of image a channel is, by its name or its values."""

from __future__ import annotations

import re

_WORDS = {
    "CT": {"ct", "cta", "cect", "ncct", "cbct", "hu"},
    "PET": {"pet", "suv", "fdg", "psma", "spect"},
    "MR": {
        "mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2star", "t2f", "flair", "pd", "pdw",
        "dwi", "adc", "swi", "bold", "dce", "tof", "inplanet1", "inplanet2", "mp2rage", "mprage", "unit1", "fgatir",
    },
}  # fmt: skip
# Hounsfield units: air is -1000, and what lies outside a round field of view is set to -1024, -2048 or -3024
LOWEST_HU, AIR_HU, HIGHEST_HU = -4096, -500, 70_000


def guess_modality(name: str, low: float, high: float) -> str:
    """Guess "CT", "PET", "MR" or "other".

    Args:
        name: of the channel.
        low: smallest value of a typical image.
        high: its largest.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    by_name = next((modality for modality, known in _WORDS.items() if words & known), None)
    is_hounsfield = LOWEST_HU <= low <= AIR_HU and 0 < high <= HIGHEST_HU
    return by_name or ("CT" if is_hounsfield else "other")
