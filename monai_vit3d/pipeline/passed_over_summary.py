"""Summarise the files that were passed over, for the terminal and for run.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_vit3d.data.passed_over import PassedOver, by_reason
from monai_vit3d.data.printable import printable

from .paths import some


def describe_passed_over(files: Sequence[PassedOver]) -> list[str]:
    """Write a line with the number of files and one for each reason, with the first names; none if there are none."""
    groups = by_reason(files)
    if not groups:
        return []
    paths = [path for group in groups.values() for path in group]
    top = Path(os.path.commonpath([path.parent for path in paths]))
    folders = any(map(os.path.isdir, paths))
    kind = ("folder" if folders else "file") if len(paths) == 1 else "files and folders" if folders else "files"
    lines = [f"{len(paths)} {kind} passed over in {printable(top)}:"]
    for reason, group in groups.items():
        lines.append(f"{len(group)} {reason}: {some([printable(path.relative_to(top)) for path in group])}")
    return lines


def recorded(files: Sequence[PassedOver]) -> list[dict[str, Any]]:
    """List each reason with the number of its files and their names, for run.json."""
    return [
        {"reason": reason, "count": len(paths), "files": [str(path) for path in paths]}
        for reason, paths in by_reason(files).items()
    ]
