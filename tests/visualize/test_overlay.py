"""Pictures of labels over images: the same for every storage order, with the letters that nibabel would give."""

import itertools
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.volume import Grid
from monai_vit3d.visualize.colours import PALETTE, label_colour
from monai_vit3d.visualize.overlay import draw_overlay, label_centre, write_png
from monai_vit3d.visualize.planes import PLANES, plane_letters

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]
LETTERS = {"axial": tuple("RLAP"), "coronal": tuple("RLSI"), "sagittal": tuple("APSI")}


def stored_as(letters, array, affine):
    """An RAS array and its affine in another storage order, by nibabel."""
    turn = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(codes) for codes in ("RAS", letters)))
    lead = array.ndim - 3
    parts = [nib.orientations.apply_orientation(part, turn) for part in array.reshape(-1, *array.shape[lead:])]
    stored = np.stack(parts).reshape(*array.shape[:lead], *parts[0].shape)
    return stored, affine @ nib.orientations.inv_ornt_aff(turn, array.shape[lead:])


def head():
    """An RAS image that is the same in no mirror; label 1 at the left, 2 at the front, 3 at the top."""
    voxels = np.random.default_rng(0).uniform(50, 100, (20, 26, 12)).astype(np.float32)
    labels = np.zeros(voxels.shape, np.int16)
    labels[3:6, 9:14, 4:7] = 1
    labels[8:14, 20:24, 4:6] = 2
    labels[8:14, 9:14, 9:11] = 3
    return voxels, labels, np.diag([2, 1.5, 3, 1])


def draw(voxels, labels, affine, **options):
    return draw_overlay(voxels, labels, Grid(voxels.shape, affine), **options)


@pytest.fixture(scope="module")
def picture():
    return np.asarray(draw(*head()))


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_storage_order_is_not_seen(letters, picture):
    voxels, labels, affine = head()
    stored, turned = stored_as(letters, voxels, affine)
    assert nib.aff2axcodes(turned) == tuple(letters)
    assert np.array_equal(np.asarray(draw(stored, stored_as(letters, labels, affine)[0], turned)), picture)
    assert axis_letters(turned) == letters
    assert {plane: plane_letters(turned, plane) for plane in PLANES} == LETTERS


@pytest.mark.parametrize("letters", ["RAS", "LPI", "SPL", "AIR"])
def test_planes_pass_through_the_same_voxel_in_any_order(letters):
    voxels, labels, affine = head()
    place = np.zeros(voxels.shape, np.int16)
    place[4, 22, 10] = 1
    stored, turned = stored_as(letters, voxels, affine)
    centre = [int(i) for i in np.argwhere(stored_as(letters, place, affine)[0])[0]]
    drawn = draw(stored, stored_as(letters, labels, affine)[0], turned, centre=centre)
    expected = np.asarray(draw(voxels, labels, affine, centre=[4, 22, 10]))
    assert np.array_equal(np.asarray(drawn), expected)
    assert not np.array_equal(expected, np.asarray(draw(voxels, labels, affine)))


@pytest.mark.slow
@pytest.mark.parametrize("letters", ["RAS", "LPI", "SPL", "AIR"])
def test_masks_in_any_order_too(letters):
    voxels, labels, affine = head()
    masks = np.stack([labels > 0, labels == 2])
    pictures = [draw(voxels, masks, affine)]
    pictures += [draw(stored_as(letters, voxels, affine)[0], *stored_as(letters, masks, affine))]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    colours = {tuple(pixel) for pixel in np.asarray(pictures[0]).reshape(-1, 3)}
    assert {label_colour(1), label_colour(2)} <= colours  # the smaller one on top: both contours are seen


@pytest.mark.parametrize(
    ("label", "panel", "side"),
    [(1, 0, "right"), (1, 1, "right"), (2, 0, "up"), (2, 2, "left"), (3, 1, "up"), (3, 2, "up")],
)
def test_sides(picture, label, panel, side):
    """Left in the patient is right in the picture; A and S are up, and A is left in the sagittal plane."""
    voxels, labels, affine = head()
    labels = np.where(labels == label, label, 0)
    drawn = np.asarray(draw(voxels, labels, affine, centre=label_centre(labels)))
    assert drawn.shape == picture.shape == (292, 914, 3)
    first, last = [(0, 299), (311, 610), (622, 914)][panel]  # 40, 40 and 39 mm at 260 / 39 pixels a mm, with margins
    rows, columns = np.nonzero((drawn[:, first:last] == label_colour(label)).all(axis=2))
    across, up = 2 * columns.mean() / (last - first) - 1, 1 - 2 * rows.mean() / len(drawn)
    assert {"right": across, "left": -across, "up": up}[side] > 0.25


@given(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.lists(st.floats(0.3, 8), min_size=3, max_size=3),
    st.booleans(),
)
def test_letters_of_oblique_grids(quaternion, spacing, mirrored):
    if np.linalg.norm(quaternion) < 0.1:
        quaternion = [1, 0, 0, 0]
    rotation = nib.quaternions.quat2mat(quaternion) @ np.diag([-1 if mirrored else 1, 1, 1])
    affine = nib.affines.from_matvec(rotation @ np.diag(spacing), [10, -20, 5])
    strong = np.sort(np.abs(rotation), axis=0)
    if (strong[2] - strong[1]).min() < 1e-6 or len(set(np.abs(rotation).argmax(axis=0))) < 3:
        return  # a tie, or two axes nearest to one: which goes first is a choice
    assert axis_letters(affine) == "".join(nib.aff2axcodes(affine))
    assert {plane: plane_letters(affine, plane) for plane in PLANES} == LETTERS


def test_true_proportion():
    """A ball drawn from 0.5 x 0.5 x 6 mm voxels is as wide as it is high in each plane."""
    shape, spacing = (160, 160, 14), np.array([0.5, 0.5, 6])
    place = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing)], indexing="ij"))
    ball = ((place**2).sum(axis=0) < 30**2).astype(np.uint8)
    picture = np.asarray(draw(ball * np.float32(9), ball, np.diag([*spacing, 1]), colours=[(255, 0, 0)]))
    red = (picture[..., 0] > 200) & (picture[..., 1] < 200)
    columns = np.flatnonzero(red.any(axis=0))
    panels = np.split(columns, np.flatnonzero(np.diff(columns) > 12) + 1)
    assert len(panels) == 3
    for panel in panels:
        high = np.ptp(np.flatnonzero(red[:, panel].any(axis=1))) + 1
        assert len(panel) == pytest.approx(high, abs=6 / 84 * 260 + 2)  # a slice's thickness
    assert 260 <= picture.shape[0] <= 300


@pytest.mark.parametrize("value", [0, 7, -1000, 3e38, np.nan])
def test_images_without_contrast(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = np.asarray(draw(np.full((8, 9, 10), value, np.float32), np.zeros((8, 9, 10), np.uint8), np.eye(4)))
    assert picture.max() <= 235  # letters, and grey at most


def test_a_mask_as_image_is_seen():
    voxels = np.zeros((8, 8, 8), np.float32)
    voxels[2:6, 2:6, 2:6] = 1
    assert (np.asarray(draw(voxels, voxels.astype(np.uint8) * 0, np.eye(4))) == 255).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 30, 30), (30, 1, 2), (400, 2, 2), (1, 1, 500)])
def test_thin_volumes(shape):
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    picture = draw(voxels, np.ones(shape, np.uint8), np.diag([1, 1, 5, 1]))
    assert picture.mode == "RGB"
    assert picture.height <= 300
    assert picture.width <= 3 * 430


def test_only_three_slices_of_the_image_are_read():
    """Values elsewhere change nothing, not even the window."""
    voxels, labels, affine = head()
    seen = draw(voxels, labels, affine)
    where = [np.count_nonzero(labels, axis=tuple(set(range(3)) - {i})) for i in range(3)]
    best = [len(w) - 1 - int(w[::-1].argmax()) for w in where]  # the first of equals, from right, front and top
    other = np.full_like(voxels, 1e6)
    for axis, i in enumerate(best):
        index = tuple(i if a == axis else slice(None) for a in range(3))
        other[index] = voxels[index]
    assert draw(other, labels, affine).tobytes() == seen.tobytes()


def test_colours():
    voxels, labels, affine = head()
    given = np.asarray(draw(voxels, labels, affine, colours=[(1, 2, 3), (4, 5, 200)]))
    assert {(1, 2, 3), (4, 5, 200)} <= {tuple(pixel) for pixel in given.reshape(-1, 3)}


def test_labels_of_another_image():
    with pytest.raises(UsageError, match="Bring the labels"):
        draw(np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), np.eye(4))


def test_png_is_whole_and_the_same_again(tmp_path):
    path = tmp_path / "qc" / "sub-01" / "t1.png"
    write_png(draw(*head()), path)
    first = path.read_bytes()
    write_png(draw(*head()), path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["t1.png"]
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(draw(*head())))


def test_reference_is_a_white_line_under_the_labels_and_only_differences_are_filled():
    """A box moved by two voxels along the first axis, over black: seen in the axial plane at 10 pixels a voxel."""
    labels, reference = np.zeros((2, 20, 20, 20), np.uint8)
    labels[6:14, 5:15, 5:15], reference[4:12, 5:15, 5:15] = 1, 1
    voxels = np.zeros(labels.shape, np.float32)
    compared = np.asarray(draw(voxels, labels, np.eye(4), reference=reference)).astype(int)
    alone = np.asarray(draw(voxels, labels, np.eye(4))).astype(int)
    axial = compared[:, : compared.shape[0]]
    white = (axial == 255).all(axis=2)
    columns = np.flatnonzero(white.sum(axis=0) > 0.3 * white.shape[0])
    assert len(columns) == 2, "both sides of the reference: none is where the labels have theirs"
    coloured = (axial == PALETTE[0]).all(axis=2)
    assert coloured.sum() == (alone[:, : alone.shape[0]] == PALETTE[0]).all(axis=2).sum()
    # of 8 + 2 voxels across, the first two are missing (grey from white), the last two too many (from the colour)
    grey = (axial == round(0.4 * 255)).all(axis=2)
    tinted = (axial == np.rint(0.4 * np.array(PALETTE[0]))).all(axis=2)
    filled_alone = (alone[:, : alone.shape[0]] == np.rint(0.4 * np.array(PALETTE[0]))).all(axis=2)
    assert grey.sum() == pytest.approx(tinted.sum(), rel=0.2)
    assert tinted.sum() == pytest.approx(filled_alone.sum() / 4, rel=0.2)


@pytest.mark.parametrize("letters", ORIENTATIONS[::7])
def test_storage_order_of_a_reference_is_not_seen(letters):
    voxels, labels, affine = head()
    reference = np.roll(labels, 1, axis=1)
    (stored, turned), (marks, _), (under, _) = (stored_as(letters, a, affine) for a in (voxels, labels, reference))
    centre = (9, 21, 5)
    there = np.linalg.inv(turned) @ affine @ [*centre, 1]
    plain = draw(voxels, labels, affine, reference=reference, centre=centre)
    other = draw(stored, marks, turned, reference=under, centre=[round(i) for i in there[:3]])
    np.testing.assert_array_equal(np.asarray(other), np.asarray(plain))


def test_a_reference_of_another_shape_is_refused():
    voxels, labels, affine = head()
    with pytest.raises(UsageError, match="Bring the labels onto the image's grid"):
        draw(voxels, labels, affine, reference=labels[1:])


def test_small_labels_are_drawn_with_their_surroundings():
    voxels = np.random.default_rng(0).uniform(50, 100, (100, 120, 90)).astype(np.float32)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[40:50, 60:70, 30:40] = 2
    around = (slice(20, 70), slice(40, 90), slice(10, 60))  # 20 mm
    whole, part = draw(voxels, labels, np.eye(4)), draw(voxels[around], labels[around], np.eye(4))
    assert np.array_equal(np.asarray(whole), np.asarray(part))
    labels[5:95, 65, 35] = 1  # along one axis they fill much
    assert np.asarray(draw(voxels, labels, np.eye(4))).shape != np.asarray(part).shape
