"""Read CSV and JSON lists of cases."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from monai_vit3d.data.csv_files import parse_csv
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import read_text_file
from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import reader_for

from .case import Case
from .paths import absolute, holds_dicom

_NO_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the other surrogates stand for bytes that are no UTF-8
_SINGLE = ("name", "mask")
_LIST_KEYS = ("test", "testing", "cases", "images")


def read_csv(table: Path) -> list[Case]:
    """Read a table with a column ``image``, or several that begin so, and maybe ``name`` and ``mask``.

    Raises:
        UsageError: it is malformed.
    """
    lines = parse_csv(_text(table), printable(table), UsageError)
    if len(lines) < 2:
        raise UsageError(
            f"{printable(table)}: no rows. A line 'image' or 'image,name' and one for each case are expected."
        )
    (first, header), *body = lines
    columns = [i for i, column in enumerate(header) if column.startswith("image") and ";" not in column]
    if not columns or any(header.count(name) > 1 for name in _SINGLE):
        raise UsageError(
            f"{printable(table)}, line {first}: columns {header}; expected 'image', or 'image...' for each "
            "channel, and at most one 'name' and one 'mask', with commas between."
        )
    channels = [_channel(header[i]) for i in columns]
    named, masked = (header.index(name) if name in header else len(header) for name in _SINGLE)
    cases = []
    for line, cells in body:
        where = f"{printable(table)}, line {line}"
        if any(cells[len(header) :]):
            raise UsageError(f"{where}: {len(cells)} cells; the header has {len(header)}. Quote a cell with commas.")
        row = [*cells, *[""] * len(header)]
        case = _case([row[i] for i in columns], row[named] or None, where, table.parent, channels)
        cases.append(_with_mask(case, row[masked], where, table.parent))
    return cases


def read_json(table: Path) -> list[Case]:
    """Read a list of paths, or of objects with ``image`` and maybe ``name`` and ``mask``.

    Raises:
        UsageError: it is malformed.
    """
    text = _text(table)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{printable(table)}: not JSON ({error}). Correct it.") from error
    lists = [content]
    if isinstance(content, dict):
        lists = [content[key] for key in _LIST_KEYS if content.get(key)]
    if len(lists) != 1 or not isinstance(lists[0], list) or not lists[0]:
        raise UsageError(
            f"{printable(table)}: no list of cases, or several; expected one that is not empty, alone or as the "
            f"only one of {', '.join(_LIST_KEYS)}."
        )
    return [_json_case(entry, f"{printable(table)}, entry {i}", table.parent) for i, entry in enumerate(lists[0], 1)]


def _json_case(entry: Any, where: str, folder: Path) -> Case:
    content = entry if isinstance(entry, dict) else {"image": entry}
    name, mask = (content.get(key) for key in _SINGLE)
    columns = [key for key in content if isinstance(key, str) and key.startswith("image")]
    texts = ["" if text is None else text for text in (name, mask)]
    listed = isinstance(content.get("image"), list)
    images = content["image"] if listed else [content[key] for key in columns]
    if (listed and len(columns) > 1) or not images or not all(isinstance(text, str) for text in [*images, *texts]):
        came = printable(repr(entry))[:80]
        raise UsageError(
            f"{where}: {came}; expected a path or {{'image': path or [paths], 'name': text}}, or image_A, image_B for "
            "the channels."
        )
    case = _case(images, name, where, folder, [] if listed else [_channel(key) for key in columns])
    return _with_mask(case, mask or "", where, folder)


def _channel(column: str) -> str:
    """Return ``flair`` of ``image_flair``; empty for a column that only counts, such as ``image2``."""
    return column.removeprefix("image_") if column.startswith("image_") else ""


def _case(images: Sequence[str], name: str | None, where: str, folder: Path, channels: Sequence[str] = ()) -> Case:
    unusable = [printable(text) for text in images if not text or _NO_PATH.search(text)]
    if unusable:
        raise UsageError(f"{where}: image '{unusable[0]}'; the path of a file is expected. Fill it in or leave it out.")
    paths = tuple(absolute(folder / text) for text in images)
    for text, path in zip(images, paths):
        usable = holds_dicom(path) and len(paths) == 1 if os.path.isdir(path) else reader_for(path)
        if not usable:
            raise UsageError(
                f"{where}: '{printable(text)}'; expected a .nii or .nii.gz file for each channel, or one folder with "
                "DICOM files directly in it."
            )
    if name is not None:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or _NO_PATH.search(name):
            raise UsageError(f"{where}: name '{printable(name)}'; one below OUT is expected, such as 'a' or 'a/b'.")
    relative = PurePosixPath(name or "")
    names = tuple(channels) if any(channels) else ()
    return Case(paths, relative, dicom=os.path.isdir(paths[0]), channels=names, listed=True)


def _with_mask(case: Case, text: str, where: str, folder: Path) -> Case:
    """Add the mask that a row names, if it does."""
    if not text:
        return case
    if _NO_PATH.search(text) or not reader_for(folder / text):
        raise UsageError(f"{where}: mask '{printable(text)}'; expected a .nii or .nii.gz file. Correct or empty it.")
    return replace(case, mask=absolute(folder / text))


def _text(table: Path) -> str:
    try:
        return read_text_file(table)  # Excel begins its UTF-8 with a byte order mark
    except OSError as error:
        raise UsageError(f"{printable(table)}: cannot be read ({error.strerror}). Make it readable.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{printable(table)}, line {line}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
