"""Open a bundle's folder, or its zip as MONAI's model zoo ships it; no link or member may lead out of it."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_vit3d.data.errors import BundleError
from monai_vit3d.data.nearest import did_you_mean

from .shipped import find_bundle, shipped_bundles

MAX_UNPACKED_BYTES = 8 * 2**30
MAX_MEMBERS = 100_000
RATIO, RATIO_FROM_BYTES = 200, 100 * 10**6  # weights inflate hardly at all; zeros a thousandfold
CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
_ENCRYPTED = 0x1


@contextmanager
def open_bundle(path: str | Path) -> Iterator[Path]:
    """Yield a bundle's folder within the ``with`` block; a zip is unpacked into a temporary one.

    Nothing in the bundle is run or imported, and ``logging.conf`` is not read: ``logging.config.fileConfig``
    evaluates what stands there.

    Args:
        path: a folder, a ``.zip`` with the bundle at its top or in a single folder, or a name as
            :func:`~.shipped.find_bundle` takes it.

    Yields:
        The folder that holds ``configs``.

    Raises:
        BundleError: nothing there, no bundle, a link out of the folder, or a zip that is damaged, that holds anything
            but plain files and folders under plain names, or that inflates beyond measure.
    """
    bundle = find_bundle(path)
    if bundle.is_dir():
        yield _checked(bundle)
    elif bundle.is_file() and bundle.suffix.lower() == ".zip":
        with tempfile.TemporaryDirectory(prefix="vit3d-bundle-") as folder:
            _extract(bundle, Path(folder))
            yield _checked(_entered(Path(folder)), str(bundle))
    else:
        reason = "neither a folder nor a .zip" if bundle.exists() else "no such file or folder"
        names = shipped_bundles()
        meant = did_you_mean(str(bundle), names) or " Correct the path."
        raise BundleError(
            f"{bundle}: {reason}; expected the folder of a MONAI bundle, its zip, one of {', '.join(names)}, or "
            f"hf:OWNER/NAME@COMMIT of the hub.{meant}"
        )


def _checked(folder: Path, name: str | None = None) -> Path:
    """Return the folder, after a check that it is a bundle and that all its links end in it."""
    name = name or str(folder)
    root = folder.resolve()
    for path, mode in _oddities(folder):
        if not stat.S_ISLNK(mode):
            raise BundleError(f"{path}: a pipe, socket or device; a bundle holds files and folders. Remove it.")
        link, target = path, Path(os.path.realpath(path))  # follows a loop without an error
        if not target.is_relative_to(root):
            raise BundleError(
                f"{link}: a link to {target}, outside the bundle {name}. Put the file itself in its place."
            )
    if not any((folder / config).is_file() for config in CONFIGS):
        raise BundleError(f"{name}: none of {', '.join(CONFIGS)}; it has {_listing(folder)}. Give a MONAI bundle.")
    return folder


def _oddities(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield what is neither a regular file nor a folder, with its mode: opening a pipe would wait for ever."""
    for parent, folders, files in os.walk(folder, followlinks=False, onerror=_unreadable):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield Path(path), mode


def _unreadable(error: OSError) -> None:
    raise BundleError(f"{error.filename}: cannot be read ({error.strerror}). Make the bundle readable.")


def _listing(folder: Path) -> str:
    configs = folder / "configs"
    where = configs if configs.is_dir() else folder
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in where.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{shown or 'nothing'}{' in configs' if where is configs else ''}"


def _extract(bundle: Path, folder: Path) -> None:
    """Extract all members, after all of them were found harmless."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            members = archive.infolist()
            fault = next(filter(None, map(_member_violation, members)), "") or _sum_violation(members)
            if fault:
                raise BundleError(f"{bundle}: {fault} Unpack it yourself if you trust it, and give the folder.")
            archive.extractall(folder)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{bundle}: cannot be unpacked ({error}). Fetch it again.") from error


def _member_violation(member: zipfile.ZipInfo) -> str:
    """Return why one member may not be extracted, or ""."""
    # as it stands in the archive: zipfile cuts names at a null byte
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        fault = "an absolute path"
    elif "\\" in name or any(ord(c) < 32 for c in name):
        fault = "a backslash or control character in the name"
    elif any(part in ("", ".", "..") for part in parts):
        fault = "a path with '..', '.' or empty parts"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "a symbolic link" if kind == stat.S_IFLNK else "a device, pipe or socket"
    elif member.flag_bits & _ENCRYPTED:
        fault = "encrypted"
    elif member.file_size > RATIO_FROM_BYTES and member.file_size > RATIO * member.compress_size:
        fault = f"{member.file_size} bytes out of {member.compress_size}, more than {RATIO} times"
    else:
        return ""
    return f"{name!r} is {fault}; expected plain files and folders."


def _sum_violation(members: list[zipfile.ZipInfo]) -> str:
    """Return why the members together may not be extracted, or ""."""
    total, packed = (sum(getattr(member, size) for member in members) for size in ("file_size", "compress_size"))
    if total > RATIO_FROM_BYTES and total > RATIO * packed:
        return f"its members are {total} bytes out of {packed} in all, more than {RATIO} times."
    if total > MAX_UNPACKED_BYTES or len(members) > MAX_MEMBERS:
        return (
            f"{len(members)} members of {total / 2**30:.1f} GiB; at most {MAX_MEMBERS} "
            f"of {MAX_UNPACKED_BYTES / 2**30:.0f} GiB in all are unpacked."
        )
    seen: dict[str, str] = {}
    for member in members:
        # two names that differ in case alone are one file on some disks
        key = member.filename.removesuffix("/").casefold()
        if key in seen:
            return f"{member.filename!r} comes twice (as {seen[key]!r}); expected names that differ."
        seen[key] = member.filename
    return ""


def _entered(folder: Path) -> Path:
    """Return the single folder at the top of a zip, else the top."""
    entries = [entry for entry in folder.iterdir() if entry.name != "__MACOSX"]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and entries[0].name != "configs" else folder
