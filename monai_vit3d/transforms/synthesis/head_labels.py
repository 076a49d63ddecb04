"""Tables of the label values in whole-head maps: which structure a value is, and how bright its tissue is in T1.

The values are FreeSurfer's, as in the label maps that SynthSeg is trained from (Billot et al., Medical Image Analysis
2023); there, 136, 137, 163 and 164 lie in the ventricles (choroid plexus), 25 and 57 are lesions of the white matter,
and values from 500 on are clusters of the tissue outside of the brain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# The classes of the head networks, in their order: name and label values; class 0 is what no row has
HEAD_STRUCTURES: dict[str, tuple[int, ...]] = {
    "left cerebrum": (2, 3, 26),
    "right cerebrum": (41, 42, 58),
    "left lateral ventricle": (4, 5, 136, 137),
    "right lateral ventricle": (43, 44, 163, 164),
    "left thalamus": (10, 28),
    "right thalamus": (49, 60),
    "left striatum": (11, 12, 13),
    "right striatum": (50, 51, 52),
    "left hippocampus": (17,),
    "right hippocampus": (53,),
    "left amygdala": (18,),
    "right amygdala": (54,),
    "left cerebellum": (7, 8),
    "right cerebellum": (46, 47),
    "brainstem": (15, 16),
    "cerebrospinal fluid": (14, 24, 72),
    "head": tuple(range(500, 532)),
}

# The classes of the bundle head_structures, in the same form: what lies outside of the skull's inside is class 0
BRAIN_STRUCTURES: dict[str, tuple[int, ...]] = {
    "left cerebral white matter": (2, 25),
    "right cerebral white matter": (41, 57),
    "left cerebral cortex": (3,),
    "right cerebral cortex": (42,),
    "left lateral ventricle": (4, 5, 136, 137),
    "right lateral ventricle": (43, 44, 163, 164),
    "left cerebellum": (7, 8),
    "right cerebellum": (46, 47),
    "left thalamus": (10,),
    "right thalamus": (49,),
    "left striatum": (11, 12, 26),
    "right striatum": (50, 51, 58),
    "left pallidum": (13,),
    "right pallidum": (52,),
    "left hippocampus": (17,),
    "right hippocampus": (53,),
    "left amygdala": (18,),
    "right amygdala": (54,),
    "left ventral diencephalon": (28,),
    "right ventral diencephalon": (60,),
    "brainstem": (16,),
    "third and fourth ventricle": (14, 15),
    "cerebrospinal fluid": (24, 72),
}

# Tissues whose brightness is drawn together: label values and mean in a T1-weighted image, white matter being 1
BRAIN_TISSUES: tuple[tuple[tuple[int, ...], float], ...] = (
    ((2, 41, 85), 1.0),
    ((3, 42, 17, 53, 18, 54, 26, 58), 0.68),
    ((4, 5, 14, 15, 24, 43, 44, 30, 62, 72), 0.22),
    ((10, 49), 0.84),
    ((28, 60), 0.92),
    ((11, 12, 50, 51), 0.74),
    ((13, 52), 0.9),
    ((7, 46), 0.97),
    ((8, 47), 0.66),
    ((16,), 0.93),
    ((25, 57), 0.55),
    ((136, 137, 163, 164), 0.4),
)
FLUID = 24  # the value outside of the cortex that some skull-stripping keeps
FIRST_OUTSIDE = 500  # label values from here on lie outside of the brain
LARGEST_VALUE = 531

# Values that change places when a head is mirrored
MIRROR_PAIRS: tuple[tuple[int, int], ...] = (
    *((left, left + 39) for left in (2, 3, 4, 5, 7, 8, 10, 11, 12, 13)),
    *((17, 53), (18, 54), (25, 57), (26, 58), (28, 60), (30, 62), (136, 163), (137, 164)),
)


def structure_lookup(structures: Mapping[str, Sequence[int]] = HEAD_STRUCTURES) -> np.ndarray:
    """Make the array that turns label values into class numbers, 1 for the first structure.

    Args:
        structures: name and label values of each class.

    Returns:
        (532,) uint8; 0 for values of no structure.
    """
    lookup = np.zeros(LARGEST_VALUE + 1, np.uint8)
    for number, values in enumerate(structures.values(), 1):
        lookup[list(values)] = number
    return lookup


def mirror_lookup() -> np.ndarray:
    """Make the array that turns the label values of a head into those of its mirror image, (532,) int16."""
    lookup = np.arange(LARGEST_VALUE + 1, dtype=np.int16)
    for left, right in MIRROR_PAIRS:
        lookup[left], lookup[right] = right, left
    return lookup
