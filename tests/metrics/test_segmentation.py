"""Scores of label maps against independent float64 implementations, and what must hold for any label maps."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt
from skimage.measure import marching_cubes, mesh_surface_area

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.metrics.segmentation import score_labels

METRICS = ("dice", "nsd_voxel", "nsd_mm", "hd95_mm", "volume_ml", "reference_ml")


def blobs(seed, shape=(24, 20, 12)):
    """Two maps of three touching labels with holes and specks, the second one a little moved."""
    rng = np.random.default_rng(seed)
    maps = []
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    for shift in (0, rng.uniform(-2, 2, size=(3, 1, 1, 1))):
        labels = np.zeros(shape, np.int16)
        for value, centre in enumerate(([7, 7, 5], [14, 9, 6], [10, 14, 5]), 1):
            radius = np.array([5, 4, 3]).reshape(3, 1, 1, 1)
            inside = (((grid - np.array(centre).reshape(3, 1, 1, 1) - shift) / radius) ** 2).sum(0) < 1
            labels[inside] = value
        labels[rng.random(shape) < 0.01] = 0
        labels[tuple(rng.integers(0, n) for n in shape)] = 2
        maps.append(labels)
    return maps


def dice(pred, ref):
    return 2 * (pred & ref).sum() / (pred.sum() + ref.sum())


def hausdorff_95(pred, ref, spacing):
    """By distance transforms of the whole volume; the volume's edge is a border."""
    edges = [mask & ~binary_erosion(mask) for mask in (pred, ref)]
    directed = [distance_transform_edt(~other, sampling=spacing)[edge] for edge, other in (edges, edges[::-1])]
    return max(np.percentile(distances, 95) for distances in directed)


def surface_elements(mask, spacing):
    """Centre (in voxels) and area of the piece of a marching-cubes surface in each cell of eight voxels."""
    padded = np.pad(mask, 1).astype(np.float64)
    elements = {}
    for corner in itertools.product(*[range(n - 1) for n in padded.shape]):
        cell = padded[tuple(slice(i, i + 2) for i in corner)]
        if 0 < cell.sum() < 8:
            vertices, faces, *_ = marching_cubes(cell, 0.5, spacing=spacing)
            elements[corner] = mesh_surface_area(vertices, faces)
    return elements


def surface_dice(pred, ref, spacing, tolerance, distances_in):
    (first, second) = (surface_elements(mask, spacing) for mask in (pred, ref))
    near = total = 0.0
    for own, other in ((first, second), (second, first)):
        places = np.array(list(other)) * distances_in
        for place, area in own.items():
            distance = np.sqrt(((places - np.array(place) * distances_in) ** 2).sum(1)).min()
            near, total = near + area * (distance <= tolerance * (1 + 1e-5)), total + area
    return near / total


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.75, 5.0)])
@pytest.mark.parametrize("seed", range(3))
def test_dice_distance_and_volume_are_those_of_scipy(seed, spacing):
    pred, ref = blobs(seed)
    rows = score_labels(pred, ref, spacing)
    assert [row.label for row in rows] == [1, 2, 3]
    for row in rows:
        masks = pred == row.label, ref == row.label
        assert row.dice == pytest.approx(dice(*masks), abs=1e-6)
        assert row.hd95_mm == pytest.approx(hausdorff_95(*masks, spacing), rel=1e-5)
        assert row.volume_ml == pytest.approx(masks[0].sum() * math.prod(spacing) / 1000)
        assert row.volume_difference_ml == pytest.approx(
            (int(masks[0].sum()) - int(masks[1].sum())) * math.prod(spacing) / 1000
        )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.75, 5.0)])
def test_surface_dice_weighs_marching_cubes_surface_by_area(spacing):
    """Of solids without holes, whose cells are not ambiguous; the tables of areas differ by under 1 %."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (14, 12, 10)], indexing="ij"))
    pred, ref = (
        (((grid - np.array(centre).reshape(3, 1, 1, 1)) / np.array([4.2, 3.2, 3.1]).reshape(3, 1, 1, 1)) ** 2).sum(0)
        < 1
        for centre in ([6, 5, 4], [7, 6.5, 4])
    )
    (row,) = score_labels(pred.astype(np.uint8), ref.astype(np.uint8), spacing, nsd_mm=0.8)
    in_mm = surface_dice(pred, ref, spacing, 0.8, np.array(spacing))
    in_voxels = surface_dice(pred, ref, (1.0, 1.0, 1.0), 1.0, np.ones(3))
    assert row.nsd_mm == pytest.approx(in_mm, abs=0.01)
    assert row.nsd_voxel == pytest.approx(in_voxels, abs=0.01)
    assert 0.2 < in_mm < 0.98
    assert 0.2 < in_voxels < 0.98


def test_a_box_one_thick_slice_off_is_right_at_one_voxel_and_wrong_at_two_mm():
    ref, spacing = np.zeros((20, 20, 12), bool), (0.5, 0.5, 5.0)
    ref[5:15, 5:15, 4:8] = True
    pred = np.roll(ref, 1, axis=2)
    (row,) = score_labels(pred.astype(np.uint8), ref.astype(np.uint8), spacing, nsd_mm=2.0)
    assert row.nsd_voxel == 1.0
    assert row.nsd_mm == pytest.approx(surface_dice(pred, ref, spacing, 2.0, np.array(spacing)), abs=1e-5)
    assert row.nsd_mm < 0.9


def test_equal_maps_are_perfect():
    _, ref = blobs(0)
    for row in score_labels(ref, ref, (1, 2, 3)):
        assert (row.dice, row.nsd_voxel, row.nsd_mm, row.hd95_mm, row.volume_difference_ml) == (1, 1, 1, 0, 0)
        assert row.detection.f1 == 1


def test_absent_missed_and_made_up_classes():
    pred, ref = np.zeros((2, 10, 20, 30), np.uint8)
    ref[2:4, 2:4, 2:4], pred[2:4, 2:4, 2:4] = 1, 2
    absent, missed, made_up = score_labels(pred, ref, (1.0, 2.0, 3.0), {3: "none", 1: "organ"})[2::-1]
    rows = {row.label: row for row in (absent, missed, made_up)}
    diagonal = math.hypot(10, 40, 90)
    for label in (1, 2):
        assert (rows[label].dice, rows[label].nsd_voxel, rows[label].nsd_mm) == (0, 0, 0)
        assert rows[label].hd95_mm == pytest.approx(diagonal)
    assert rows[1].detection == (0, 0, 1)
    assert rows[2].detection == (0, 1, 0)
    assert rows[2].name == "label 2"
    assert all(math.isnan(getattr(rows[3], metric)) for metric in METRICS[:4])
    assert (rows[3].name, rows[3].volume_ml, rows[3].reference_ml) == ("none", 0, 0)


@pytest.mark.slow
@given(seed=st.integers(0, 1000), margins=st.lists(st.integers(0, 6), min_size=6, max_size=6))
@settings(max_examples=4)
def test_background_around_changes_nothing(seed, margins):
    """The scores of the box around both masks are those of any larger volume."""
    pred, ref = blobs(seed)
    around = [tuple(margins[i : i + 2]) for i in (0, 2, 4)]
    plain = score_labels(pred, ref, (1.0, 0.5, 3.0))
    padded = score_labels(np.pad(pred, around), np.pad(ref, around), (1.0, 0.5, 3.0))
    assert padded == plain


@pytest.mark.slow
@given(
    seed=st.integers(0, 1000), order=st.permutations(range(3)), flips=st.lists(st.booleans(), min_size=3, max_size=3)
)
@settings(max_examples=4)
def test_storage_order_and_direction_do_not_matter(seed, order, flips):
    pred, ref = blobs(seed)
    spacing = (1.0, 0.5, 3.0)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    turned = [labels.transpose(order)[steps] for labels in (pred, ref)]
    plain, other = score_labels(pred, ref, spacing), score_labels(*turned, [spacing[axis] for axis in order])
    for one, two in zip(plain, other):
        assert one.detection == two.detection
        for metric in METRICS:
            # the table of areas is not quite symmetric in cells of several pieces
            tolerance = 5e-3 if metric.startswith("nsd") else 1e-5
            assert getattr(one, metric) == pytest.approx(getattr(two, metric), abs=tolerance), metric


@pytest.mark.slow
@given(seed=st.integers(0, 1000))
@settings(max_examples=3)
def test_exchanging_the_maps_exchanges_only_what_has_a_direction(seed):
    pred, ref = blobs(seed)
    for one, two in zip(score_labels(pred, ref, (1, 1, 2)), score_labels(ref, pred, (1, 1, 2))):
        for metric in METRICS[:4]:
            assert getattr(one, metric) == pytest.approx(getattr(two, metric), abs=1e-6)
        assert (one.volume_ml, one.reference_ml) == (two.reference_ml, two.volume_ml)
        assert one.detection == (two.true_positives, two.false_negatives, two.false_positives)


def test_large_label_values():
    labels = np.zeros((6, 6, 6), np.int64)
    labels[1:3], labels[3:5] = 2**20, 7
    assert [(row.label, row.dice) for row in score_labels(labels, labels, (1, 1, 1))] == [(7, 1.0), (2**20, 1.0)]


@pytest.mark.parametrize(
    ("pred", "ref", "options", "message"),
    [
        (np.zeros((4, 4, 4)), np.zeros((4, 4, 4), int), {}, r"prediction float64 \(4, 4, 4\), .*integer volumes"),
        (np.zeros((4, 4, 4), int), np.zeros((4, 4, 5), int), {}, r"expected two integer volumes .* of one shape"),
        (np.zeros((2, 4, 4, 4), int), np.zeros((2, 4, 4, 4), int), {}, r"\(H, W, D\)"),
        (np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int), {"spacing_mm": (1, 0, 1)}, "positive lengths"),
        (np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int), {"nsd_mm": math.nan}, "positive lengths"),
    ],
)
def test_what_is_refused(pred, ref, options, message):
    with pytest.raises(ScoreError, match=message):
        score_labels(pred, ref, **({"spacing_mm": (1, 1, 1)} | options))
