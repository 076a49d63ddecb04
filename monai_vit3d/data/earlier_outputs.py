"""List the files that earlier runs of `vit3d predict` wrote, by the run.json that each run leaves in its OUT."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .files import read_regular

_RECORD = re.compile(r"run\.json|\.run-\d+-of-\d+\.json")


def written_files(folder: str, names: Iterable[str]) -> set[str]:
    """List the absolute paths of all outputs that the records of runs in a folder name; empty if there are none.

    Args:
        folder: its real path.
        names: of the files in it.
    """
    records = [record for name in names if _RECORD.fullmatch(name) for record in _records(Path(folder, name))]
    outputs = (record.get("outputs") for record in records if isinstance(record, dict))
    return {os.path.join(folder, path) for paths in outputs if isinstance(paths, dict) for path in paths}


def has_record(folder: str | Path) -> bool:
    """Return whether a run, or a shard of one, has left its record in a folder."""
    return any(_RECORD.fullmatch(name) for name in os.listdir(folder))


def _records(path: Path) -> list[object]:
    """Read ``files`` of a run's record; empty for another program's run.json, whatever its content."""
    try:
        content = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return []
    files = content.get("files") if isinstance(content, dict) else None
    return files if isinstance(files, list) else []
