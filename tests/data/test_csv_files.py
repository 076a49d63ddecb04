"""Cells that a spreadsheet takes for text, whichever separator its country has."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.csv_files import csv_cell, write_csv

SIGNS = "=+-@＝＋－＠"  # noqa: RUF001
ATTACKS = [
    "=1+1",
    "a;=HYPERLINK(A1)",
    "a;  =1",
    "a,@SUM(A1)",
    "a\t=1",
    "a\r=1",
    'a";"=1',
    "x|+1",
    ";;-1",
    "＝1",  # noqa: RUF001
    "  @x",
]


def cells_in_all_countries(text):
    """What a spreadsheet shows of a file's lines, by the separator that its country has."""
    for separator in ",;\t|":
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
            yield from (c for row in csv.reader(text.splitlines(), delimiter=separator, quoting=quoting) for c in row)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_cell_is_a_formula_in_any_country(tmp_path, attack, place):
    row = ["case", "0.5", "liver"]
    row[place] = attack
    write_csv([["filename", "probability", "prediction"], row], tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    starts = [cell.strip().strip('"').strip()[:1] for cell in cells_in_all_countries(text)]
    assert not [start for start in starts if start and start in SIGNS], text


@pytest.mark.slow
@given(st.text())
def test_a_guarded_cell_stays_as_it_is(text):
    assert csv_cell(csv_cell(text)) == csv_cell(text)


@given(st.from_regex(r"[\w. ()/-]*[\w]", fullmatch=True).filter(lambda text: not text.strip().startswith("-")))
def test_usual_names_are_not_changed(text):
    if "\x1f" not in text and text.isprintable():
        assert csv_cell(text) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_stay_numbers(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("numbers") / "a.csv"
    write_csv([["a", f"{value:.6g}"]], path)
    assert path.read_text() == f"a,{value:.6g}\n"


def test_what_cannot_be_printed_is_escaped(tmp_path):
    write_csv([["a\x1b[31m\u202eb\udce9\n\x00\u2028"]], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "a\\x1b[31m\\u202eb\\udce9\\n\\x00\\u2028\n"
