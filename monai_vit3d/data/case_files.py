"""Group image files into cases: NAME_0000 and NAME_0001 are channels of one case, as nnU-Net names them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .channel_files import check_channels
from .errors import DatasetError, ImageError
from .limits import MAX_VOXELS
from .readers import count_volumes, read_volume, read_volumes, without_suffix

if TYPE_CHECKING:
    from .volume import Volume

_NUMBERED = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)
_SHOWN = 5


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Args:
        paths: a file for each channel, in order, those that are missing, too; or one file.
        name: the path without the channel's number, with the suffix; of one file, its path.
        missing: those of ``paths`` that are not among the files.
    """

    paths: tuple[Path, ...]
    name: Path
    missing: tuple[Path, ...] = ()


def group_channels(files: Iterable[Path], channels: int) -> list[CaseFiles]:
    """Group files that are channels of one case by the four digits at the end of their names, counted from 0.

    With one channel every file is a case, whatever its name. Otherwise files of one folder and name make a case; but
    a 4D file of ``channels`` volumes is one by itself, and numbers of which none can be a channel are part of names.

    Args:
        files: paths of images; only headers are read.
        channels: how many each case has.

    Returns:
        The cases, in the order of their first files.

    Raises:
        DatasetError: two files that are one channel, as a_0000.nii and a_0000.nii.gz.
    """
    cases: dict[Path, dict[int, Path]] = {}
    for path in files:
        match = _NUMBERED.fullmatch(without_suffix(path.name)) if channels > 1 else None
        if match is None or holds_channels(path, channels):
            cases[path] = {}
            continue
        numbered = cases.setdefault(path.with_name(match[1]), {})
        other = numbered.setdefault(int(match[2]), path)
        if other != path:
            raise DatasetError(f"{path}: channel {int(match[2])} of {match[1]}, as {other.name} is. Move one away.")
    return [case for name, numbered in cases.items() for case in _cases(name, numbered, channels)]


def _cases(name: Path, numbered: dict[int, Path], channels: int) -> Iterator[CaseFiles]:
    """Make one case of numbered files, or one of each where their numbers are no channels."""
    if not numbered or min(numbered) >= channels:
        yield from (CaseFiles((path,), path) for path in numbered.values() or (name,))
        return
    first = next(iter(numbered.values()))
    suffix = first.name.removeprefix(without_suffix(first.name))
    missing = {i: name.with_name(f"{name.name}_{i:04d}{suffix}") for i in range(channels) if i not in numbered}
    paths = {**numbered, **missing}
    yield CaseFiles(tuple(paths[i] for i in sorted(paths)), name.with_name(name.name + suffix), (*missing.values(),))


def holds_channels(path: Path, channels: int) -> bool:
    """Return whether a file is a 4D image of so many volumes, by its header; False for one that cannot be read."""
    try:
        return channels > 1 and count_volumes(path) == channels
    except ImageError:
        return False


def read_channels(
    paths: Sequence[Path],
    channels: int,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    hashed: bool = False,
) -> list[Volume]:
    """Read the files of a case: a volume of each, or of one 4D file all, if there are so many as channels.

    Args:
        paths: of the case, one or more.
        channels: how many it needs; another number of several files is for the caller to refuse.
        volume: which one of 4D files, from 0; None takes no part of them.
        max_voxels: larger images are refused.
        hashed: whether to give the SHA-256 of the files.

    Raises:
        ImageError: a file that is missing or cannot be used, or one file with another number of volumes.
    """
    check_present(paths)
    if len(paths) == 1 and channels > 1 and volume is None:
        check_channels(paths, channels, count_volumes)
        return read_volumes(paths[0], max_voxels, hashed=hashed)
    return [read_volume(path, volume, max_voxels, hashed=hashed) for path in paths]


def check_present(paths: Sequence[Path]) -> None:
    """Make sure that no channel of a case is missing; of a single file, reading says it.

    Raises:
        ImageError: one is missing.
    """
    missing = [path for path in paths if not os.path.lexists(path)]
    if missing and len(paths) > 1:
        raise ImageError(
            f"{missing[0]}: no such file; the case needs {len(paths)} channels, a file each. Add it beside the others, "
            "or leave the case out."
        )


def image_cases(dataset_dir: str | Path, channels: int = 1) -> list[dict[str, Any]]:
    """List the cases of a folder of NIfTI files for MONAI's data sets; for ``inference.yaml``.

    Args:
        dataset_dir: the folder, searched as :func:`~monai_vit3d.data.nifti_files` does.
        channels: how many each image has: files NAME_0000, NAME_0001, ..., or one 4D file.

    Returns:
        ``{"image": paths}`` for each case, a path for each channel, or one of a file that holds all.

    Raises:
        DatasetError: no such folder, no image in it, or a channel of a case that is missing.

    Example:
        >>> image_cases("imagesTs", channels=2)  # doctest: +SKIP
        [{'image': ['imagesTs/a_0000.nii.gz', 'imagesTs/a_0001.nii.gz']}]
    """
    from .nifti.files import nifti_files

    cases = group_channels(map(Path, nifti_files(dataset_dir)), channels)
    missing = [str(path) for case in cases for path in case.missing]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DatasetError(
            f"{', '.join(missing[:_SHOWN])}{more}: missing; a file for each of {channels} channels is expected. Add "
            "what is missing, or move these cases away."
        )
    return [{"image": [str(path) for path in case.paths]} for case in cases]
