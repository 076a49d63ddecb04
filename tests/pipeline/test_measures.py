"""Measures of images and labels, against scikit-image, Counter and loops over voxels."""

from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import filters
from skimage.measure import label as connected

from monai_vit3d.data.volume import Grid
from monai_vit3d.pipeline import measures
from monai_vit3d.pipeline.measures import measure_grid, measure_input, measure_labels
from monai_vit3d.pipeline.stats import label_stats

GRID = Grid((6, 7, 8), np.diag([1.0, 2.0, 0.5, 1.0]))
LABELS = arrays(np.uint8, GRID.shape, elements=st.integers(0, 3))


def measured(labels, voxels=None):
    voxels = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32) if voxels is None else voxels
    return measure_labels(labels, voxels, label_stats(labels, voxels, GRID, {1: "a", 2: "b", 3: "c"}))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ARI"])
def test_field_of_view_is_along_the_patients_axes_however_the_file_is_stored(codes):
    image = nib.Nifti1Image(np.zeros((40, 50, 20), np.uint8), np.diag([1.0, 0.8, 3.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    found = measure_grid(Grid(turned.shape, turned.affine))
    assert found["field_of_view_mm"] == pytest.approx({"left-right": 40, "back-front": 40, "bottom-top": 60})
    assert found["spacing_mm"] == pytest.approx({"left-right": 1, "back-front": 0.8, "bottom-top": 3})


def test_input_quantiles_are_of_all_channels():
    image = torch.stack([torch.zeros(5, 5, 4), torch.ones(5, 5, 4)]).bfloat16()
    assert list(measure_input(image)["input"].values()) == [0, 0, 0.5, 1, 1]


@given(LABELS)
def test_border_voxels_as_a_loop_counts_them(labels):
    inner = np.zeros(labels.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    expected = Counter(labels[~inner].tolist())
    found = measured(labels)["labels"]
    assert {value: one.get("border_voxels", 0) for value, one in found.items()} == {
        str(v): expected[v] for v in (1, 2, 3)
    }


@given(arrays(np.uint8, GRID.shape, elements=st.sampled_from([0, 0, 0, 0, 1, 2])))
def test_pieces_are_parts_that_touch_by_a_corner_and_are_no_crumbs(labels):
    found = measured(labels)["labels"]
    for value in (1, 2):
        sizes = np.bincount(connected(labels == value, connectivity=3).ravel())[1:]
        expected = sum(size >= 0.05 * sizes.sum() for size in sizes)
        assert found[str(value)].get("pieces", 0) == expected


def test_one_value_under_a_label_is_noticed_with_the_share_of_voxels_that_have_it():
    voxels = np.random.default_rng(1).normal(size=GRID.shape).astype(np.float32)
    labels = np.zeros(GRID.shape, np.uint8)
    labels[0], labels[2] = 1, 2
    voxels[0, :, :2] = 7  # 14 of 56
    voxels[2] = 0
    found = measured(labels, voxels)["labels"]
    assert found["1"]["share_of_one_value"] == pytest.approx(14 / 56)
    assert found["2"]["share_of_one_value"] == 1
    assert found["3"] == {"present": 0}


def test_nothing_is_said_of_the_values_under_a_few_voxels():
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3, 3, 3:5] = 1
    assert "share_of_one_value" not in measured(labels)["labels"]["1"]


@given(st.integers(0, 2**32 - 1))
def test_bright_and_dark_part_where_scikit_image_has_it(seed):
    rng = np.random.default_rng(seed)
    voxels = np.concatenate([rng.normal(0, 1, 200), rng.normal(rng.uniform(2, 9), 1, rng.integers(20, 400))])
    voxels = voxels.astype(np.float32)

    def between(threshold):
        """The variance between the two parts, which Otsu's threshold makes largest."""
        bright = voxels > threshold
        share = bright.mean()
        return share * (1 - share) * (voxels[bright].mean(dtype=float) - voxels[~bright].mean(dtype=float)) ** 2

    # ours is the upper end of a bin of 256, scikit-image's the middle of it: 0.9996 or more of 30,000 seeds
    assert between(measures._otsu(voxels)) > 0.999 * between(filters.threshold_otsu(voxels))


def test_share_of_the_foreground():
    voxels = np.zeros(GRID.shape, np.float32)
    voxels[:4] = 100
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:3] = 1
    assert measured(labels, voxels)["share_of_foreground"] == 0.5
    masks = np.stack([labels, np.roll(labels, 1, axis=0)])
    assert measured(masks, voxels)["share_of_foreground"] == 0.75
    assert "share_of_foreground" not in measured(labels, np.full(GRID.shape, 3, np.float32))


def test_masks_are_measured_as_the_labels_they_stand_for():
    labels = np.zeros(GRID.shape, np.uint8)
    labels[0:2], labels[3, 2:4] = 1, 2
    masks = np.stack([labels == value for value in (1, 2, 3)]).astype(np.uint8)
    voxels = np.random.default_rng(2).normal(size=GRID.shape).astype(np.float32)
    assert measured(masks, voxels) == measured(labels, voxels)


def test_large_label_values_have_pieces_too():
    labels = np.zeros(GRID.shape, np.int32)
    labels[0], labels[4], labels[2, 2] = 2035, 2035, 70000
    voxels = np.random.default_rng(3).normal(size=GRID.shape).astype(np.float32)
    found = measure_labels(labels, voxels, label_stats(labels, voxels, GRID, {}))["labels"]
    assert (found["2035"]["pieces"], found["70000"]["pieces"]) == (2, 1)


def test_a_large_image_is_sampled(monkeypatch):
    voxels = np.zeros((40, 40, 40), np.float32)
    voxels[:20] = np.random.default_rng(4).normal(100, 5, (20, 40, 40))
    labels = np.zeros(voxels.shape, np.uint8)
    labels[25:35, 5:35, 5:35] = 1
    stats = label_stats(labels, voxels, Grid(voxels.shape, np.eye(4)), {1: "a"})
    whole = measure_labels(labels, voxels, stats)
    monkeypatch.setattr(measures, "IMAGE_SAMPLE_VOXELS", voxels.size // 8)
    assert measure_labels(labels, voxels, stats) == whole  # half of it is labelled air, as in every sample
    assert whole["labels"]["1"]["share_of_one_value"] == 1
