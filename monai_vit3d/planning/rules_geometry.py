"""Rules for the grid: spacing, flips, rotations, patch and window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_vit3d.data.class_sides import name_words

from .plan import Evidence

AXIS_NAMES = ("left-right", "back-front", "bottom-top")
ANISOTROPY = 3.0  # of spacing and of shape, above which the coarse axis is treated on its own (nnU-Net)
# words of class names that a flip along an axis would make wrong
SIDES = (
    ("left", "right", "lt", "rt", "lh", "rh", "l", "r"),
    ("anterior", "posterior", "front", "back"),
    ("superior", "inferior", "upper", "lower", "top", "bottom"),
)
PATCH = 8  # voxels along the fine axes


def decide_spacing_mm(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take the median spacing; along a much coarser axis the 10th percentile, as nnU-Net does."""
    if "spacing_mm" in evidence.stated:
        return list(evidence.stated["spacing_mm"]), "as the pretrained encoder's authors have it"
    spacing = [float(mm) for mm in evidence.fingerprint["spacing_mm"]["50"]]
    shape = evidence.fingerprint["shape"]["50"]
    axis = coarse_axis(spacing)
    if axis is None:
        return _rounded(spacing), "median of the training cases"
    others = [i for i in range(3) if i != axis]
    if shape[axis] * ANISOTROPY < max(shape[i] for i in others):
        fine = evidence.fingerprint["spacing_mm"]["10"][axis]
        spacing[axis] = max(float(fine), *(spacing[i] for i in others))
        return _rounded(spacing), f"median; {AXIS_NAMES[axis]} is coarse: its 10th percentile, anisotropy is kept"
    return _rounded(spacing), f"median of the training cases; {AXIS_NAMES[axis]} is coarse, anisotropy is kept"


def _rounded(spacing: list[float]) -> list[float]:
    return [float(f"{mm:.4g}") for mm in spacing]


def coarse_axis(spacing: list[float]) -> int | None:
    """Return the axis whose spacing is more than 3 times the finest; None where there is none."""
    return spacing.index(max(spacing)) if max(spacing) > ANISOTROPY * min(spacing) else None


def resampled_shape(evidence: Evidence, spacing: list[float], percentile: str = "50") -> list[int]:
    """Compute the median case's size in voxels after resampling, or that of another percentile."""
    shape, old = evidence.fingerprint["shape"][percentile], evidence.fingerprint["spacing_mm"]["50"]
    return [max(1, round(n * float(mm) / new)) for n, mm, new in zip(shape, old, spacing)]


def decide_flip_axes(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Allow flips along the axes on which no class has a side; where a window shows a whole case, left-right alone."""
    allowed, reasons = [], []
    pairs = evidence.fingerprint.get("left_right_pairs", [])
    whole = all(size >= 0.8 * n for size, n in zip(plan["window"], resampled_shape(evidence, plan["spacing_mm"])))
    for axis, words in enumerate(SIDES):
        sided = [name for name in foreground_names(evidence) if {*name_words(name)} & {*words}]
        sided = sided or (pairs[0] if axis == 0 and pairs else [])
        if sided:
            reasons.append(f"not {AXIS_NAMES[axis]}: class {sided[0]!r} has a side")
        elif axis and whole:
            reasons.append(f"not {AXIS_NAMES[axis]}: a window shows a whole case, which is never upside down")
        else:
            allowed.append(axis)
    return allowed, "; ".join(reasons) or "no class has a side"


def foreground_names(evidence: Evidence) -> list[str]:
    """List the names of all classes but the background."""
    return [str(facts["name"]) for facts in evidence.fingerprint.get("classes", {}).values()]


def decide_rotate_range(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Rotate by up to 15 degrees; about the coarse axis alone where there is one."""
    axis = coarse_axis(plan["spacing_mm"])
    if axis is None:
        return [0.26, 0.26, 0.26], "radians: 15 degrees about each axis"
    angles = [0.26 if i == axis else 0.0 for i in range(3)]
    return angles, f"radians: in the planes of the slices, {AXIS_NAMES[axis]} is too coarse to rotate through"


def decide_patch_size(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take 8 voxels along the finest axis, and as many mm along the others, in powers of two."""
    if "patch_size" in evidence.encoder:
        return list(evidence.encoder["patch_size"]), "the pretrained encoder's"
    spacing, shape = plan["spacing_mm"], resampled_shape(evidence, plan["spacing_mm"])
    fitting = [PATCH * min(spacing) / mm for mm in spacing]
    sizes = [2 ** max(0, round(math.log2(size))) for size in fitting]
    sizes = [min(size, 2 ** int(math.log2(max(1, n / 2)))) for size, n in zip(sizes, shape)]  # two patches or more
    if max(sizes) == 1:
        sizes[shape.index(max(shape))] = 2  # a decoder needs something to up-sample
    same = len(set(sizes)) == 1
    return sizes, "voxels" if same else "voxels, about as many mm along each axis as the spacing allows"
