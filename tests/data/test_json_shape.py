"""Types by place: what does not fit is named with its place."""

import json
import math

import pytest

from monai_vit3d.data.json_shape import ANY_KEY, shape_violation

SHAPE = {"name": str, "files": [{"seconds": float, "n": int}], "map": {ANY_KEY: (str, type(None))}}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"name": "a", "more": 3},
        {"files": []},
        {"files": [{"seconds": 1}, {"seconds": 1.5, "n": 10**400}]},
        {"map": {"a": None, "b": "c"}},
    ],
)
def test_what_fits(value):
    assert shape_violation(value, SHAPE) == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("3", "it is 3; an object with names is expected"),
        ('{"name": null}', "it.name is None; text is expected"),
        ('{"name": 3}', "it.name is 3; text is expected"),
        ('{"files": {}}', "it.files is {}; a list is expected"),
        ('{"files": [{}, 1]}', "it.files[1] is 1; an object with names is expected"),
        ('{"files": [{"seconds": 1e999}]}', "it.files[0].seconds is inf; a finite number is expected"),
        ('{"files": [{"seconds": true}]}', "it.files[0].seconds is True; a number is expected"),
        ('{"files": [{"n": 1.0}]}', "it.files[0].n is 1.0; a whole number is expected"),
        ('{"map": {"a": []}}', "it.map.a is []; text or nothing is expected"),
    ],
)
def test_what_does_not_fit_is_named(text, fault):
    assert shape_violation(json.loads(text), SHAPE) == fault


def test_a_long_value_is_cut():
    assert len(shape_violation("x" * 1000, int)) < 100
    assert shape_violation(math.nan, float) == "it is nan; a finite number is expected"
