"""Patches in their colours over a volume: where their grid says, whatever the volume's storage order."""

import numpy as np
import pytest

from monai_vit3d.data.volume import Grid
from monai_vit3d.visualize.patch_colours import draw_patch_colours
from tests.visualize.test_overlay import stored_as

PATCHES = Grid((2, 2, 2), np.array([[8, 0, 0, 3.5], [0, 8, 0, 3.5], [0, 0, 8, 3.5], [0, 0, 0, 1.0]]))  # of 8 voxels
GREY, RED = [128, 128, 128], [198, 57, 57]  # 127.5, and 0.55 of the way from there to 255 and 0


def test_a_patch_has_its_colour_where_it_lies_in_the_patient():
    colours = np.zeros((3, 2, 2, 2), np.float32)
    colours[0, 1, 1, 0] = 1  # right, anterior, inferior
    picture = np.asarray(draw_patch_colours(np.ones((16, 16, 16)), Grid((16, 16, 16), np.eye(4)), colours, PATCHES))
    axial, coronal, sagittal = (picture[16:276, left : left + 260] for left in (16, 16 + 304, 16 + 608))
    # the middle of 16 slices is the eighth from above, from the front and from the right
    for plane, rows, columns in (
        (axial, slice(130), slice(130)),  # right and anterior are left and above
        (coronal, slice(130, 260), slice(130)),  # at y = 7, behind it
        (sagittal, slice(130, 260), slice(130)),  # at x = 7, to the left of it
    ):
        expected = np.full((260, 260, 3), GREY)
        if plane is axial:
            expected[rows, columns] = RED
        np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize("letters", ["LPI", "SPL", "AIR"])
def test_storage_order_is_not_seen(letters):
    generator = np.random.default_rng(0)
    voxels, affine = generator.uniform(50, 100, (20, 26, 12)), np.diag([2, 1.5, 3, 1])
    colours = generator.uniform(0, 1, (3, 3, 4, 2)).astype(np.float32)
    patches = Grid((3, 4, 2), np.array([[9, 2, 0, 3], [-1, 8, 0, 4], [0, 0, 15, 9], [0, 0, 0, 1.0]]))  # turned, apart
    pictures = [
        np.asarray(draw_patch_colours(stored, Grid(stored.shape, turned), colours, patches))
        for stored, turned in ((voxels, affine), stored_as(letters, voxels, affine))
    ]
    np.testing.assert_array_equal(*pictures)
    plain = np.asarray(draw_patch_colours(voxels, Grid(voxels.shape, affine)))
    is_grey = plain.max(-1) == plain.min(-1)
    assert is_grey.all()
    painted = (pictures[0].max(-1) > pictures[0].min(-1)).mean()
    assert 0.2 < painted < 1
