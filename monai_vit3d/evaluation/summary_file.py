"""The file ``summary.json`` of an evaluation: written, found and read; and the numbers of its tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import read_regular, write_text_atomic
from monai_vit3d.data.json_shape import Shape, shape_violation
from monai_vit3d.data.printable import printable

SUMMARY = "summary.json"
_MAX_BYTES = 2**28
_Parsed = TypeVar("_Parsed")


def write_summary(content: Mapping[str, Any], output: Path) -> None:
    """Write an evaluation as JSON; numbers that JSON has not become null.

    Args:
        content: what it has, named tuples as dictionaries.
        output: the folder.
    """
    text = json.dumps(_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomic(text + "\n", output / SUMMARY)


def find_summary(folder: Path) -> Path | None:
    """Return the summary in the folder of an evaluation, or of a bundle that has one; None where there is none."""
    places = (folder / SUMMARY, folder / "evaluation" / SUMMARY)
    return next((path for path in places if path.is_file()), None)


def read_summary(path: Path, shape: Shape, parse: Callable[[Any], _Parsed]) -> _Parsed:
    """Read the summary of an earlier evaluation.

    Args:
        path: the file.
        shape: types of what is needed of it, as for :func:`~monai_vit3d.data.json_shape.shape_violation`.
        parse: converts its content to the result; a key that is missing is an error of the file.

    Raises:
        UsageError: the file is no such summary.
    """
    try:
        content = json.loads(read_regular(path, _MAX_BYTES))
        if violation := shape_violation(content, shape, "it"):
            raise ValueError(violation)
        return parse(content)
    except (ValueError, KeyError, OSError, RecursionError) as error:
        raise UsageError(
            f"{printable(path)}: not the summary of an evaluation ({error}). Evaluate it again."
        ) from error


def table_cell(value: float) -> str:
    """Format a number for a table; "" for one that is not finite."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.6g}" if math.isfinite(value) else ""


def _json(value: Any) -> Any:
    """Replace numbers that JSON has not by null."""
    if isinstance(value, Mapping):
        return {key: _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
