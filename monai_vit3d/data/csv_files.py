"""CSV files that a spreadsheet of any country opens as text and numbers, never as formulas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import write_text_atomic
from .printable import printable

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
# the signs that OWASP lists, also full-width, where a cell begins; in a country that separates cells by semicolons or
# tabs, a new one begins after each of these, and a quote may end one
_FORMULA = re.compile('(^|[;,|\t"])(\\s*)([=+\\-@\uff1d\uff0b\uff0d\uff20])')


def csv_cell(text: str) -> str:
    """Write a text as a cell that no spreadsheet takes for a formula, nor for several cells.

    An apostrophe goes before each sign that begins a formula, at the beginning and after each separator
    (https://owasp.org/www-community/attacks/CSV_Injection); invisible and control characters become escapes.

    Args:
        text: the content; what was guarded already stays as it is.
    """
    return _FORMULA.sub(r"\1'\2\3", printable(text))


def write_csv(rows: Iterable[Sequence[str]], path: str | Path) -> None:
    """Write rows as UTF-8 with commas, all of the file or nothing; what is no number goes through :func:`csv_cell`.

    Args:
        rows: the header first.
        path: the file.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [cell if _NUMBER.fullmatch(cell) else csv_cell(cell) for cell in row] for row in rows
    )
    write_text_atomic(text.getvalue(), path)
