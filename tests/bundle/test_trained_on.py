"""`trained_on` of metadata.json: read, or refused with the place of what is wrong; ranges hold every case."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.bundle.trained_on import TrainedOn, merge_ranges, read_trained_on
from monai_vit3d.data.errors import BundleError

NUMBERS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


def test_read():
    found = read_trained_on(
        {"cases": 3, "a": {"b": [1, 2.5]}, "orientation": ["RAS"], "note": "text", "entropy": [0, 1]}
    )
    assert found == TrainedOn(3, {("a", "b"): (1, 2.5), ("entropy",): (0, 1)}, ("RAS",))
    assert found.has("b")
    assert not found.has("input")
    assert read_trained_on(None) == TrainedOn()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        "yes",
        {"entropy": [1]},
        {"entropy": [2, 1]},
        {"entropy": [1, "2"]},
        {"entropy": [None, 1]},
        {"labels": {"1": {"volume_ml": [1, float("inf")]}}},
        {"entropy": [True, True]},
        {"orientation": "RAS"},
        {"orientation": [1]},
        {"cases": "many"},
        {"cases": True},
        {"cases": -1},
    ],
)
def test_malformed_is_one_line_that_names_the_file_and_the_place(tmp_path, content):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"trained_on": content}))
    with pytest.raises(BundleError, match=r"metadata\.json: .*trained_on.*expected") as caught:
        read_metadata(tmp_path)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=9))
def test_every_case_lies_in_the_merged_ranges_which_are_hardly_wider(cases):
    merged = merge_ranges([{"a": {"x": x}, "y": y} for x, y in cases])
    for values, (low, high) in (([x for x, _ in cases], merged["a"]["x"]), ([y for _, y in cases], merged["y"])):
        slack = 1e-9 * max(map(abs, values))
        assert low - slack <= min(values) <= max(values) <= high + slack
        assert low == pytest.approx(min(values), rel=2e-3)
        assert high == pytest.approx(max(values), rel=2e-3)


def test_a_quantity_that_a_case_lacks_is_not_counted():
    assert merge_ranges([{"x": 1.0}, {}, {"x": 3.0}]) == {"x": [1.0, 3.0]}
