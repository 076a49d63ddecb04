"""Read CSV files, and write them so that a spreadsheet of any country opens no cell as a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import DatasetError, Vit3dError
from .files import read_text_file, write_text_atomic
from .printable import printable

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
# the signs that OWASP lists, also full-width, at the beginning of a cell; in countries that separate cells by
# semicolons or tabs, a new cell begins after each of these, and a quote may end one
_FORMULA = re.compile('(^|[;,|\t"])(\\s*)([=+\\-@\uff1d\uff0b\uff0d\uff20])')


def parse_csv(text: str, name: str, error: type[Vit3dError]) -> list[tuple[int, list[str]]]:
    """Parse a table, strictly.

    Args:
        text: with commas.
        name: of the file, for messages.
        error: to raise.

    Returns:
        line number and stripped cells of each line that is not blank.

    Raises:
        Vit3dError: of the class ``error``, for text that is not CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as fault:
        raise error(f"{name}, line {reader.line_num}: not CSV ({fault}). Close its quotes.") from fault
    return [(line, cells) for line, cells in lines if any(cells)]


def read_csv_lines(table: Path) -> list[tuple[int, list[str]]]:
    """Read line numbers and stripped cells of all lines of a file that are not blank.

    Raises:
        DatasetError: no such file, or it is not UTF-8 or not CSV.
    """
    if not table.is_file():
        raise DatasetError(f"{table}: no such file. Give a CSV file with a path and a label in each row.")
    try:
        text = read_text_file(table)  # Excel begins its UTF-8 with a byte order mark
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{table}, line {line}: not UTF-8 ({error}). Save it as 'CSV UTF-8'.") from error
    return parse_csv(text, str(table), DatasetError)


def read_csv_rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Read the rows below the header, each as its line number and its cells by column; cells that lack are empty.

    Raises:
        DatasetError: as of :func:`read_csv_lines`; or a column comes twice, a row is too long, or there is none.
    """
    lines = read_csv_lines(table)
    if len(lines) < 2:
        raise DatasetError(f"{table}: no rows; expected a line with the names of columns and one for each case.")
    (first, header), *body = lines
    twice = [column for column in header if column and header.count(column) > 1]
    if twice:
        raise DatasetError(f"{table}, line {first}: two columns {twice[0]!r}; one is expected. Rename one.")
    for line, cells in body:
        if any(cells[len(header) :]):
            raise DatasetError(
                f"{table}, line {line}: {len(cells)} cells; the header has {len(header)}. Quote a cell with commas."
            )
    return [(line, dict(zip(header, cells + [""] * len(header)))) for line, cells in body]


def csv_cell(text: str) -> str:
    """Guard a text so that no spreadsheet reads it as a formula or as several cells.

    An apostrophe goes before each sign that begins a formula, at the beginning and after each separator
    (https://owasp.org/www-community/attacks/CSV_Injection); invisible and control characters become escapes.

    Args:
        text: the content; a guarded text stays as it is.
    """
    return _FORMULA.sub(r"\1'\2\3", printable(text))


def write_csv(rows: Iterable[Sequence[str]], path: str | Path) -> None:
    """Write rows as UTF-8 with commas, atomically; all cells but numbers go through :func:`csv_cell`.

    Args:
        rows: the header first.
        path: the file.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [cell if _NUMBER.fullmatch(cell) else csv_cell(cell) for cell in row] for row in rows
    )
    write_text_atomic(text.getvalue(), path)
