"""Report files of an input that are not cases, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PassedOver:
    """A file or folder of an input that is not a case.

    Args:
        path: absolute.
        reason: a clause that continues "3 files passed over: ", with what to do if something can be done. Equal
            reasons are counted together.
    """

    path: Path
    reason: str


def by_reason(files: Iterable[PassedOver]) -> dict[str, list[Path]]:
    """Group files by reason, the reason of most files first; each file counts once, under its last reason."""
    reasons = {file.path: file.reason for file in files}
    groups: dict[str, list[Path]] = {}
    for path, reason in sorted(reasons.items()):
        groups.setdefault(reason, []).append(path)
    return dict(sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])))
