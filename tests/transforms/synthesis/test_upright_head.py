"""Label maps of heads that are laid upright: structures come to the template's places, in its size."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_vit3d.data.errors import UsageError
from monai_vit3d.transforms import UprightHeadd
from monai_vit3d.transforms.synthesis import HEAD_STRUCTURES, structure_centres

TEMPLATE = {
    "left thalamus": [-20.0, 5.0, 10.0],
    "right thalamus": [20.0, 5.0, 10.0],
    "brainstem": [0.0, -15.0, -25.0],
    "left amygdala": [-25.0, 30.0, -5.0],
    "right amygdala": [25.0, 30.0, -5.0],
    "head": None,
}
PLACED = {name: HEAD_STRUCTURES[name] for name, centre in TEMPLATE.items() if centre}


def balls(turn, scale, spacing=1.0, without=()):
    """A label map in which a ball of each structure lies as a turned and enlarged template has it."""
    size = round(140 / spacing)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1) * spacing
    labels = np.zeros((size,) * 3, np.int16)
    for name, values in PLACED.items():
        if name not in without:
            centre = scale * turn @ TEMPLATE[name] + 70
            labels[np.linalg.norm(grid - centre, axis=-1) < 6 * scale] = values[0]
    return MetaTensor(torch.from_numpy(labels)[None], np.diag([spacing] * 3 + [1]))


@pytest.mark.parametrize(("angles", "scale", "spacing"), [((0, 0, 0), 1.0, 1.0), ((20, -10, 30), 1.2, 1.4)])
def test_structures_come_to_the_templates_places(angles, scale, spacing):
    labels = balls(Rotation.from_euler("xyz", angles, True).as_matrix(), scale, spacing)
    upright = UprightHeadd("label", TEMPLATE, (96, 112, 88), centre_mm=(0, 0, -4))({"label": labels})["label"]
    assert upright.shape == (1, 96, 112, 88)
    assert upright.dtype == labels.dtype
    middle = (np.array([96, 112, 88]) - 1) / 2 + [0, 0, 4]
    centres = structure_centres(upright, PLACED).numpy() - middle
    np.testing.assert_allclose(centres, [TEMPLATE[name] for name in PLACED], atol=0.6)
    volume = 4 / 3 * np.pi * 6**3  # in the template's size
    for values in PLACED.values():
        assert (upright == values[0]).sum() == pytest.approx(volume, rel=0.1)


def test_a_structure_that_is_missing_does_not_count():
    labels = balls(np.eye(3), 1.0, without=("left amygdala",))
    upright = UprightHeadd("label", TEMPLATE, (96, 112, 96))({"label": labels})["label"]
    centres = structure_centres(upright, PLACED)
    assert centres[3].isnan().all()
    middle = (np.array([96, 112, 96]) - 1) / 2
    np.testing.assert_allclose(centres[0].numpy() - middle, TEMPLATE["left thalamus"], atol=0.6)


def test_a_map_without_a_head_is_refused():
    labels = balls(np.eye(3), 1.0, without=("left amygdala", "right amygdala", "brainstem"))
    with pytest.raises(UsageError, match=r"a label map has 2 of left thalamus, .*; expected three or more"):
        UprightHeadd("label", TEMPLATE, (96, 112, 96))({"label": labels})
