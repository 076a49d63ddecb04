"""Check that the files of a case hold all channels: a 3D file each, or one 4D file of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import ImageError


def check_channels(paths: Sequence[Path], channels: int, count_volumes: Callable[[Path], int]) -> None:
    """Make sure that a case's files hold so many channels: a 3D file each, or one file of so many volumes.

    Args:
        paths: of the case, one or more.
        channels: how many there must be.
        count_volumes: counts the volumes of a file.

    Raises:
        ImageError: another number.
    """
    counts = [count_volumes(path) for path in paths]
    if counts in ([channels], [1] * channels):
        return
    came = f"{counts[0]} channel(s)" if len(paths) == 1 else f"{len(paths)} files of {_listed(counts)} volume(s)"
    expected = f"{channels} files of one volume each, or one 4D file of {channels} volumes"
    several = "Name the files NAME_0000, NAME_0001, ..., or list them in a CSV."
    advice = several if channels > 1 else "Give the volume alone."
    raise ImageError(
        f"{paths[0]}: {came}; {expected if channels > 1 else 'one 3D volume'} is expected for a case. {advice}"
    )


def _listed(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))
