"""Sheets of a case: the same for every storage order; slices by numpy's quantiles, views by a walk along each ray."""

import numpy as np
import pytest

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.volume import Grid
from monai_vit3d.visualize.colours import PALETTE
from monai_vit3d.visualize.label_views import paint_label_view
from monai_vit3d.visualize.overlay import label_slices
from monai_vit3d.visualize.sheet import draw_sheet
from tests.visualize.test_overlay import ORIENTATIONS, head, stored_as


@pytest.mark.parametrize("letters", ORIENTATIONS[::9])
def test_storage_order_is_not_seen(letters):
    voxels, labels, affine = head()
    (stored, turned), (marks, _) = (stored_as(letters, part, affine) for part in (voxels, labels))
    sheet, other = (
        draw_sheet(voxels, labels, Grid(voxels.shape, affine)),
        draw_sheet(stored, marks, Grid(stored.shape, turned)),
    )
    assert sheet.tobytes() == other.tobytes()
    assert sheet.width > sheet.height


def test_slices_divide_the_labelled_voxels_into_quarters():
    labels = (np.random.default_rng(0).random((40, 9, 25)) < np.linspace(0, 0.8, 25)).astype(np.uint8)
    expected = [np.quantile(places, (0.25, 0.5, 0.75), method="higher") for places in np.nonzero(labels)]
    assert label_slices(labels, 3) == [[int(i) for i in row] for row in expected]


@pytest.mark.parametrize(("size", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [2, 4, 6])])
def test_slices_without_a_label_are_spread(size, expected):
    assert label_slices(np.zeros((size, 4, 4), np.uint8), 3)[0] == expected
    assert draw_sheet(
        np.ones((size, 4, 4), np.float32), np.zeros((size, 4, 4), np.uint8), Grid((size, 4, 4), np.eye(4))
    )


def test_a_sheet_without_labels_has_no_views_and_no_colours():
    voxels = np.random.default_rng(0).uniform(50, 100, (40, 40, 40)).astype(np.float32)
    bare, grid = np.zeros(voxels.shape, np.uint8), Grid(voxels.shape, np.eye(4))
    labelled = bare.copy()
    labelled[2:38, 2:38, 2:38] = 1
    without, with_views = draw_sheet(voxels, bare, grid), draw_sheet(voxels, labelled, grid)
    assert with_views.width - 12 == pytest.approx(4 / 3 * (without.width - 2 * 12) + 2 * 12, abs=1)
    assert (np.ptp(np.asarray(without), axis=-1) == 0).all()
    assert np.ptp(np.asarray(with_views), axis=-1).any()


@pytest.mark.parametrize(
    ("plane", "axis", "backward"), [("axial", 2, True), ("coronal", 1, False), ("sagittal", 0, True)]
)
def test_a_view_has_the_label_that_a_ray_meets_first(plane, axis, backward):
    labels = np.random.default_rng(0).integers(0, 4, (12, 10, 8)) * (
        np.random.default_rng(1).random((12, 10, 8)) < 0.05
    )
    across, down = (size for i, size in enumerate(labels.shape) if i != axis)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    view = paint_label_view(labels, plane, (10 * across, 10 * down), np.ones(3), colours)
    met = set()
    for i in range(across):
        for j in range(down):
            ray = [*np.insert(np.array([i, j]), axis, 0)]
            steps = range(labels.shape[axis])
            first = 0
            for step in reversed(steps) if backward else steps:
                ray[axis] = step
                if labels[tuple(ray)]:
                    first = int(labels[tuple(ray)])
                    break
            pixels = view[10 * j : 10 * j + 10, 10 * i : 10 * i + 10].reshape(-1, 3)
            expected = np.zeros(3, bool) if first == 0 else np.array(colours[first - 1]) > 0
            assert ((pixels > 0) == expected).all()
            met.add(first)
    assert met == {0, 1, 2, 3}


def test_what_is_deeper_and_what_is_turned_from_the_light_is_darker():
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[5:25, 5:25, 30:50], labels[35:55, 5:25, 2:22] = 1, 1  # the first is nearer to the feet
    view = paint_label_view(labels, "axial", (120, 120), np.ones(3))
    near, deep = view[30, 30], view[30, 90]
    assert near.sum() > 1.4 * deep.sum() > 0
    place = np.stack(np.indices((60, 60, 60)), axis=-1) - 29.5
    ball = ((place**2).sum(axis=-1) < 25**2).astype(np.uint8)
    lit = paint_label_view(ball, "coronal", (120, 120), np.ones(3)).astype(int).sum(axis=-1)
    assert lit[35, 40] > 1.5 * lit[85, 80]  # from the upper left
    share = (lit > 0).mean()
    assert share == pytest.approx(np.pi * 25**2 / 60**2, rel=0.02)


def test_voxels_that_are_no_cubes_are_in_proportion():
    labels = np.zeros((20, 20, 10), np.uint8)
    labels[5:15, 5:15, 2:7] = 2
    view = paint_label_view(labels, "coronal", (200, 200), np.array([1.0, 1, 2]))
    rows, columns = np.nonzero(view.any(axis=-1))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (100, 100)
    middle = view[90, 100] / np.array(PALETTE[1])
    assert np.ptp(middle) < 0.02  # the label's own colour


def test_a_view_of_a_large_volume_is_that_of_every_second_voxel():
    small = (np.random.default_rng(0).random((256, 3, 4)) < 0.02).astype(np.uint8)
    large = small.repeat(2, axis=0)
    views = [
        paint_label_view(one, "axial", (256, 12), np.array([mm, 1, 1])) for one, mm in ((small, 2.0), (large, 1.0))
    ]
    assert views[0].any()
    assert np.array_equal(*views)


def test_labels_of_another_image():
    with pytest.raises(UsageError, match="Bring the labels"):
        draw_sheet(np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), Grid((4, 4, 4), np.eye(4)))


def test_overlapping_masks_are_drawn_with_the_smallest_on_top():
    voxels, labels, affine = head()
    masks = np.stack([labels == value for value in range(1, labels.max() + 1)])
    masks[masks.sum((1, 2, 3)).argmax()] = labels != 0  # the largest lies below the others, too
    sheets = [draw_sheet(voxels, marks, Grid(voxels.shape, affine)) for marks in (labels, masks.astype(np.uint8))]
    assert sheets[0].tobytes() == sheets[1].tobytes()
