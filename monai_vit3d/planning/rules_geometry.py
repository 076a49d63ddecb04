"""Rules for the grid: orientation, spacing, flips, rotations and patch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_vit3d.data.class_sides import name_words

from .fingerprint import WORLD_AXES
from .plan import Evidence

AXIS_NAMES = ("left-right", "back-front", "bottom-top")  # of WORLD_AXES
ANISOTROPY = 3.0  # of spacing and of shape, above which the coarse axis is treated on its own (nnU-Net)
# words of class names that a flip along an axis would make wrong
SIDES = (
    ("left", "right", "lt", "rt", "lh", "rh", "l", "r"),
    ("anterior", "posterior", "front", "back"),
    ("superior", "inferior", "upper", "lower", "top", "bottom"),
)
PATCH = 8  # voxels along the fine axes


def decide_orientation(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take the directions that a pretrained encoder's volumes ran to, else RAS."""
    if "orientation" in evidence.stated:
        return evidence.stated["orientation"], "as the pretrained encoder's authors have it"
    return "RAS", "to the right, the front and the top, along the three axes"


def anatomical_axes(plan: Mapping[str, Any]) -> list[int]:
    """Return which axis of the fingerprint, ``WORLD_AXES``, each axis of the network's volumes is."""
    return [next(i for i, letters in enumerate(WORLD_AXES) if letter in letters) for letter in plan["orientation"]]


def decide_spacing_mm(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take the median spacing; along a much coarser axis the 10th percentile, as nnU-Net does."""
    if "spacing_mm" in evidence.stated:
        return list(evidence.stated["spacing_mm"]), "as the pretrained encoder's authors have it"
    axes = anatomical_axes(plan)
    spacing, low = (
        [float(evidence.fingerprint["spacing_mm"][percentile][i]) for i in axes] for percentile in ("50", "10")
    )
    shape = [evidence.fingerprint["shape"]["50"][i] for i in axes]
    axis = coarse_axis(spacing)
    if axis is None:
        return _rounded(spacing), "median of the training cases"
    others = [i for i in range(3) if i != axis]
    if shape[axis] * ANISOTROPY < max(shape[i] for i in others):
        spacing[axis] = max(low[axis], *(spacing[i] for i in others))
        return _rounded(spacing), f"median; {AXIS_NAMES[axes[axis]]} is coarse: its 10th percentile, anisotropy is kept"
    return _rounded(spacing), f"median of the training cases; {AXIS_NAMES[axes[axis]]} is coarse, anisotropy is kept"


def _rounded(spacing: list[float]) -> list[float]:
    return [float(f"{mm:.4g}") for mm in spacing]


def coarse_axis(spacing: list[float]) -> int | None:
    """Return the axis whose spacing is more than 3 times the finest; None where there is none."""
    return spacing.index(max(spacing)) if max(spacing) > ANISOTROPY * min(spacing) else None


def resampled_shape(evidence: Evidence, plan: Mapping[str, Any], percentile: str = "50") -> list[int]:
    """Compute the median case's size in voxels after the plan's resampling, or that of another percentile."""
    shape, old = evidence.fingerprint["shape"][percentile], evidence.fingerprint["spacing_mm"]["50"]
    pairs = zip(anatomical_axes(plan), plan["spacing_mm"])
    return [max(1, round(shape[axis] * float(old[axis]) / new)) for axis, new in pairs]


def decide_flip_axes(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Allow flips along the axes on which no class has a side; where a window shows a whole case, left-right alone."""
    allowed, reasons = [], []
    pairs = evidence.fingerprint.get("left_right_pairs", [])
    whole = all(size >= 0.8 * n for size, n in zip(plan["window"], resampled_shape(evidence, plan)))
    for axis, anatomical in enumerate(anatomical_axes(plan)):
        sided = [name for name in foreground_names(evidence) if {*name_words(name)} & {*SIDES[anatomical]}]
        sided = sided or (pairs[0] if anatomical == 0 and pairs else [])
        if sided:
            reasons.append(f"not {AXIS_NAMES[anatomical]}: class {sided[0]!r} has a side")
        elif anatomical and whole:
            reasons.append(f"not {AXIS_NAMES[anatomical]}: a window shows a whole case, which is never upside down")
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
    name = AXIS_NAMES[anatomical_axes(plan)[axis]]
    return angles, f"radians: in the planes of the slices, {name} is too coarse to rotate through"


def decide_tta_degrees(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Average over rotations about the axes about which training rotated, by half as much."""
    angles = [float(round(math.degrees(angle) / 2)) for angle in plan["rotate_range"]]
    return angles, "degrees, half of rotate_range; of `vit3d predict --tta full`"


def decide_patch_size(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take 8 voxels along the finest axis, and as many mm along the others, in powers of two."""
    if "patch_size" in evidence.encoder:
        return list(evidence.encoder["patch_size"]), "the pretrained encoder's"
    spacing, shape = plan["spacing_mm"], resampled_shape(evidence, plan)
    fitting = [PATCH * min(spacing) / mm for mm in spacing]
    sizes = [2 ** max(0, round(math.log2(size))) for size in fitting]
    sizes = [min(size, 2 ** int(math.log2(max(1, n / 2)))) for size, n in zip(sizes, shape)]  # two patches or more
    if max(sizes) == 1:
        sizes[shape.index(max(shape))] = 2  # a decoder needs something to up-sample
    same = len(set(sizes)) == 1
    return sizes, "voxels" if same else "voxels, about as many mm along each axis as the spacing allows"
