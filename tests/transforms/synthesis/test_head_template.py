"""The template: the phantom's own centres, whatever pose its copies have."""

import pytest
import torch

from monai_vit3d.transforms.synthesis.head_template import mean_centres
from tests.transforms.synthesis.head_phantom import PARTS, head_phantom

STRUCTURES = {
    "left hippocampus": (17,), "right hippocampus": (53,), "left cerebellum": (8,), "right cerebellum": (47,),
    "left amygdala": (18,), "right amygdala": (54,), "brainstem": (16,),
}  # fmt: skip


def test_centres_of_copies_in_other_places():
    heads = [torch.roll(head_phantom(), shift, (1, 2, 3)) for shift in ((0, 0, 0), (3, -2, 1), (-1, 4, 0))]
    centres = mean_centres(heads, STRUCTURES)
    expected = torch.tensor([PARTS[values[0]][0] for values in STRUCTURES.values()], dtype=torch.float64)
    expected = expected - expected.mean(0)
    for centre, right in zip(centres.values(), expected):
        assert centre == pytest.approx(right.tolist(), abs=1.5)  # parts of ellipsoids are hidden by others
    for name in ("hippocampus", "cerebellum", "amygdala"):
        left, right = centres[f"left {name}"], centres[f"right {name}"]
        assert left == pytest.approx([-right[0], right[1], right[2]], abs=0.011)
    assert centres["brainstem"][0] == pytest.approx(0, abs=0.011)
