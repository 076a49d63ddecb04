"""Named points: where their numbers are, and no name over a point."""

import numpy as np

from monai_vit3d.visualize.colours import PALETTE
from monai_vit3d.visualize.scatter import SCATTER_SIZE, draw_scatter


def has_colour(picture, x, y, colour):
    around = np.asarray(picture).astype(int)[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
    return (np.abs(around - colour).max(-1) < 40).all()


def places(points):
    """Pixels of points, by the margins of the plot and the 8 % of the range beside them."""
    points = np.array(points)
    low, high = points.min(0), points.max(0)
    across, up = ((points - low + 0.08 * (high - low)) / (1.16 * (high - low))).T
    return zip(56 + across * (SCATTER_SIZE[0] - 56 - 20), 34 + (1 - up) * (SCATTER_SIZE[1] - 34 - 34))


def test_points_lie_where_their_numbers_are_and_no_name_covers_them():
    points = np.random.default_rng(0).normal(size=(150, 2)).tolist()
    picture = draw_scatter(points, [f"sub-{i:03d}/a very long name of a scan" for i in range(150)], "title")
    assert picture.size == SCATTER_SIZE
    assert all(has_colour(picture, x, y, PALETTE[6]) for x, y in places(points))


def test_names_stand_beside_their_points():
    points = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]
    named, bare = (np.asarray(draw_scatter(points, names, "")).astype(int) for names in (["nnn", "o", "p"], [""] * 3))
    rows, columns = np.nonzero(np.abs(named - bare).max(-1))
    (x, y), *_ = places(points)
    near = (np.abs(rows - y) < 8) & (columns > x + 4) & (columns < x + 40)
    assert near.sum() > 20


def test_of_two_points_at_one_place_both_have_names_on_either_side():
    picture = np.asarray(draw_scatter([(0.0, 0.0)] * 2, ["left", "right"], "")).astype(int)
    ink = (np.abs(picture - (40, 40, 40)).max(-1) < 60)[SCATTER_SIZE[1] // 2 - 8 : SCATTER_SIZE[1] // 2 + 8]
    middle = 56 + (SCATTER_SIZE[0] - 56 - 20) // 2
    assert ink[:, middle - 40 : middle - 6].any()
    assert ink[:, middle + 6 : middle + 40].any()
