"""Tables of label values: each once, sides that match."""

import numpy as np

from monai_vit3d.transforms.synthesis.head_labels import (
    BRAIN_TISSUES,
    HEAD_STRUCTURES,
    MIRROR_PAIRS,
    mirror_lookup,
    structure_lookup,
)


def test_a_value_is_of_one_structure_and_one_tissue():
    for groups in (HEAD_STRUCTURES.values(), [values for values, _ in BRAIN_TISSUES]):
        values = [value for group in groups for value in group]
        assert len(values) == len(set(values))


def test_classes_are_numbered_in_order():
    lookup = structure_lookup()
    for number, values in enumerate(HEAD_STRUCTURES.values(), 1):
        assert set(lookup[list(values)]) == {number}
    assert lookup[0] == 0


def test_a_mirror_image_of_a_mirror_image_is_the_head():
    lookup = mirror_lookup()
    assert np.array_equal(lookup[lookup], np.arange(len(lookup)))


def test_mirrored_structures_are_the_other_sides():
    mirrored = mirror_lookup()
    for name, values in HEAD_STRUCTURES.items():
        other = name.replace("left", "?").replace("right", "left").replace("?", "right")
        assert set(mirrored[list(values)]) == set(HEAD_STRUCTURES[other])


def test_sides_have_the_same_tissue():
    tissue = {value: mean for values, mean in BRAIN_TISSUES for value in values}
    for left, right in MIRROR_PAIRS:
        assert tissue.get(left) == tissue.get(right)
