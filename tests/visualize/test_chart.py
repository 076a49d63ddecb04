"""Charts: round ticks, and lines where the numbers are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from monai_vit3d.visualize.axes import CHART_SIZE, ticks
from monai_vit3d.visualize.chart import Curve, draw_chart
from monai_vit3d.visualize.colours import PALETTE
from monai_vit3d.visualize.stack import stack_pictures


@given(st.floats(-100, 100), st.floats(0.1, 1e4))
def test_ticks_are_few_round_and_inside(low, width):
    places = np.array(ticks(low, low + width))
    assert 2 <= len(places) <= 6
    slack = 1e-6 * width
    assert low - slack <= places[0]
    assert places[-1] <= low + width + slack
    step = (places[1:] - places[:-1]).mean()
    assert float(f"{step:.1e}"[:3]) in (1, 2, 5)
    assert places / step == pytest.approx(np.round(places / step), abs=1e-3)


def test_ticks_of_whole_numbers():
    assert ticks(1, 2, least=1) == [1, 2]
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]


def rows_of(picture, column, colour):
    """The rows of a column whose pixels are near a colour."""
    pixels = np.asarray(picture).astype(int)[:, column]
    return np.flatnonzero(np.abs(pixels - colour).max(axis=1) < 40)


def test_lines_lie_where_their_numbers_are():
    flat, rising = Curve("flat", [(0, 0.25), (100, 0.25)]), Curve("rising", [(0, 0.0), (100, 1.0)])
    picture = draw_chart([flat, rising], "title", bounds=(0, 1))
    assert picture.size == CHART_SIZE
    left, right, top, bottom = 56, CHART_SIZE[0] - 170, 34, CHART_SIZE[1] - 34
    late = left + (right - left) * 3 // 4  # where the other line is far away
    assert rows_of(picture, late, PALETTE[0]).mean() == pytest.approx(bottom - (bottom - top) / 4, abs=1.5)
    for share in (0.4, 0.5, 0.9):
        column = round(left + share * (right - left))
        assert rows_of(picture, column, PALETTE[1]).mean() == pytest.approx(bottom - share * (bottom - top), abs=2)


@pytest.mark.parametrize("points", [[], [(1, None)], [(1, float("nan"))], [(3, 0.5)], [(1, 0.5), (2, None), (3, 0.7)]])
def test_what_cannot_be_drawn_is_left_out(points):
    assert draw_chart([Curve("loss", points)], "title").size == CHART_SIZE


def test_pictures_are_stacked_under_their_captions():
    pictures = [Image.new("RGB", (30, 10), "red"), Image.new("RGB", (20, 5), "blue")]
    assert stack_pictures(pictures).size == (30, 15)
    captioned = np.asarray(stack_pictures(pictures, ["a", "b"]))
    assert captioned.shape == (51, 30, 3)
    assert (captioned[18:28] == [255, 0, 0]).all()
    assert (captioned[46:, :20] == [0, 0, 255]).all()
