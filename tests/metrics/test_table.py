"""A classifier's row: its columns, and cells that say what numpy says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.metrics import PredictionTable

NAMES = ["none", "some", "much"]
numbers = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3)


@pytest.mark.parametrize("task", ["multi-class", "ordinal", "multi-label", "ordinal-regression", "binary-class"])
def test_a_column_for_each_class_and_the_prediction(task):
    table = PredictionTable(NAMES, task)
    assert table.header() == ["probability_none", "probability_some", "probability_much", "prediction"]
    assert table.header("prediction", "label") == [*table.header(), "label"]


def test_columns_of_values():
    assert PredictionTable(["age"], "regression").header() == ["prediction"]
    assert PredictionTable(["age"], "regression").header("prediction", "label") == ["prediction", "label"]
    both = PredictionTable(["age", "height"], "regression")
    assert both.header("prediction", "label") == [
        "prediction_age",
        "prediction_height",
        "label_age",
        "label_height",
    ]


@given(numbers, st.sampled_from(["multi-class", "ordinal", "multi-label", "regression"]))
def test_cells_say_what_numpy_says(values, task):
    table = PredictionTable(NAMES, task)
    cells = table.cells(torch.tensor(values, requires_grad=True)[None])
    assert len(cells) == len(table.header())
    np.testing.assert_allclose([float(cell) for cell in cells[:3]], values, rtol=1e-5)
    if task == "multi-label":
        assert cells[3] == "|".join(name for name, value in zip(NAMES, values) if value > 0.5)
    elif task != "regression":
        assert cells[3] == NAMES[int(np.argmax(np.float32(values)))]


def test_a_half_is_no_finding_and_none_is_an_empty_cell():
    table = PredictionTable(NAMES, "multi-label")
    assert table.cells(torch.tensor([0.5, 0.5, 0.5]))[-1] == ""
    assert table.cells(torch.tensor([0.9, 0.5, 0.6]))[-1] == "none|much"


def test_low_precision_is_written_as_float32():
    cells = PredictionTable(NAMES).cells(torch.tensor([0.1, 0.2, 0.7], dtype=torch.bfloat16))
    np.testing.assert_allclose([float(cell) for cell in cells[:3]], [0.1, 0.2, 0.7], rtol=2**-8)
    assert cells[3] == "much"


def test_labels_by_name():
    assert PredictionTable(NAMES).answer(torch.tensor(2)) == ["much"]
    assert PredictionTable(NAMES, "multi-label").answer(torch.tensor([1.0, 0, 1])) == ["none|much"]
    assert PredictionTable(["age"], "regression").answer(torch.tensor([61.25])) == ["61.25"]


def test_class_names_that_are_numbers():
    table = PredictionTable([0, 1], "multi-class")
    assert table.header() == ["probability_0", "probability_1", "prediction"]
    assert table.cells(torch.tensor([0.25, 0.75])) == ["0.25", "0.75", "1"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("task", ["multi-class", "multi-label", "regression"])
def test_no_row_of_what_is_no_number(bad, task):
    with pytest.raises(ScoreError, match="NaN or infinite"):
        PredictionTable(NAMES, task).cells(torch.tensor([0.1, bad, 0.2]))


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_number_for_each_class_is_needed(count):
    with pytest.raises(ScoreError, match=f"{count} probabilities for 3 class names"):
        PredictionTable(NAMES).cells(torch.zeros(count))


@pytest.mark.parametrize(
    ("names", "task", "word"),
    [
        (["a", "a"], "multi-class", "each of them once"),
        ([1, "1"], "multi-class", "each of them once"),
        ([], "multi-class", "one or more"),
        (["a|b", "c"], "multi-label", r"'\|' joins"),
        (["a"], "guessing", "task='guessing'"),
    ],
)
def test_names_that_cannot_be_told_apart(names, task, word):
    with pytest.raises(ValueError, match=word):
        PredictionTable(names, task)


def test_a_bar_is_free_where_nothing_is_joined():
    assert PredictionTable(["a|b", "c"]).cells(torch.tensor([0.9, 0.1]))[-1] == "a|b"
