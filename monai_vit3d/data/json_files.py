"""Read JSON files that people and other programs wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import Vit3dError
from .files import read_text_file
from .printable import printable


def read_json_file(path: str | Path, error: type[Vit3dError], expected: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        error: the class of the error to raise.
        expected: what the file should hold, for that error.

    Raises:
        Vit3dError: of the class ``error``: it cannot be read, is a pipe or the like, or is not JSON.
    """
    try:
        return json.loads(read_text_file(path))
    except OSError as fault:
        raise error(f"{printable(path)}: cannot be read ({fault.strerror}); expected {expected}.") from fault
    except (ValueError, RecursionError) as fault:
        raise error(f"{printable(path)}: not JSON ({fault}); expected {expected}.") from fault
