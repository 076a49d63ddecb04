"""Write files atomically and read regular files only; links and pipes planted by others are not followed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

from .errors import UsageError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)
_BESIDE_NAME = len(".") + len(".") + 16 + len(".part")  # of a temporary file
_LONGEST_NAME = 255  # bytes, of the usual file systems
_without_links: list[Path] = []  # folders that a run writes to


def cache_folder() -> Path:
    """Return the command's and the bundles' cache: ``$XDG_CACHE_HOME/monai_vit3d``, else ``~/.cache/monai_vit3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_vit3d"


@contextmanager
def replacing(path: str | Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Open a new file of the same folder to write to; at the end it is flushed to disk and moved over ``path``.

    The file has a random hidden name and must not exist before: a link or file that someone planted under a name that
    could be guessed is never written to.

    Args:
        path: the final name; its folder is created if needed. A link there is replaced, not followed.
        mode: ``"wb"`` or ``"w"``.
        options: other keywords of ``open``.

    Raises:
        OSError: it cannot be written; an older file of that name is still there.
        UsageError: a link leads to the folder, within :func:`following_no_links`.
    """
    path = Path(path)
    folder = _open_folder(path.parent)
    name = f".{_cut(path.name)}.{secrets.token_hex(8)}.part"
    in_folder: dict[str, Any] = {"dir_fd": folder}
    part, final = (name, path.name) if folder is not None else (str(path.with_name(name)), str(path))
    try:
        with open(os.open(part, _NEW, 0o666, **in_folder), mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if folder is None:
            os.replace(part, final)
        else:
            os.replace(part, final, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(part, **in_folder)
        if isinstance(error, OSError) and error.errno and error.filename in (None, part):
            raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk's does not say which file
        raise
    finally:
        if folder is not None:
            os.close(folder)


@contextmanager
def following_no_links(folder: str | Path) -> Iterator[None]:
    """Make :func:`replacing` refuse links to folders below ``folder``, in all threads; ``folder`` itself may be one."""
    top = Path(os.path.abspath(folder))
    _without_links.append(top)
    try:
        yield
    finally:
        _without_links.remove(top)


def _open_folder(folder: Path) -> int | None:
    """Open a folder, created if needed; None if the system has no descriptors of folders."""
    if os.open not in os.supports_dir_fd:
        folder.mkdir(parents=True, exist_ok=True)
        return None
    absolute = Path(os.path.abspath(folder))
    top = next((root for root in _without_links if absolute.is_relative_to(root)), None)
    if top is None:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, _FOLDER)
    top.mkdir(parents=True, exist_ok=True)
    opened = os.open(top, _FOLDER)
    for name in absolute.relative_to(top).parts:
        outer = opened
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=outer)
            opened = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=outer)
        except NotADirectoryError as error:
            raise UsageError(
                f"{folder}: a link or file {name!r} on the way, where a folder for outputs is expected; links are not "
                "followed there. Move it away, or choose another OUT."
            ) from error
        finally:
            os.close(outer)
    return opened


def _cut(name: str) -> str:
    """Cut a name so that the name of its temporary file is not too long."""
    return os.fsdecode(os.fsencode(name)[: _LONGEST_NAME - _BESIDE_NAME])


def remove_parts(paths: Iterable[Path]) -> None:
    """Remove the temporary files that a killed process left; the caller holds a lock, so that no one else writes.

    Args:
        paths: final names, as given to :func:`replacing`.
    """
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(_cut(path.name))
    for folder, names_there in names.items():
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                match = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.part", entry.name, re.DOTALL)
                if match and match[1] in names_there and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)


def write_text_atomic(text: str, path: str | Path) -> None:
    """Write a text as UTF-8, atomically.

    Args:
        text: the whole content.
        path: the file; its folder is created if needed.
    """
    with replacing(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def read_regular(path: str | Path, limit: int | None = None) -> bytes:
    """Read a regular file; a pipe, socket or device is refused before it is read, and without waiting.

    Args:
        path: the file.
        limit: most bytes that are read; None reads all.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than ``limit``.
    """
    _check_regular(os.stat(path), path)
    # a pipe may have taken its place since, and opening it must not wait
    with os.fdopen(os.open(path, _READ), "rb") as file:
        _check_regular(os.fstat(file.fileno()), path)
        content = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise OSError(0, f"more than {limit} bytes", str(path))
    return content


def read_text_file(path: str | Path) -> str:
    """Read a regular file as UTF-8, with or without a byte order mark.

    Raises:
        OSError: as :func:`read_regular`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_regular(path).decode("utf-8-sig")


def _check_regular(status: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "a pipe, socket, device or folder; a file is expected", str(path))


def file_sha256(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_identity(path: str | Path) -> tuple[int, ...]:
    """Return device, inode, size and times of a file, which change with the file or its bytes; none without a file."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    # ctime, of the last change of any kind, cannot be set by a user
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class HashedFile(io.RawIOBase):
    """A file that computes the SHA-256 of the very bytes that are read from it.

    Args:
        file: opened for reading at its beginning; the caller closes it. Bytes that a seek skips are read, too.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def readable(self) -> bool:
        """Return True: the file is open for reading."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer with the next bytes, and return their number."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view)  # type: ignore[attr-defined]  # every binary file has it
        self._digest.update(view[:count])
        return int(count)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Seek to the beginning, where the hash starts anew, or forward.

        Raises:
            io.UnsupportedOperation: elsewhere.
        """
        if whence == os.SEEK_SET and position == 0:
            self._digest = hashlib.sha256()
            return self._file.seek(0)
        left = position - self._file.tell()
        if whence != os.SEEK_SET or left < 0:
            raise io.UnsupportedOperation("a hashed file goes back to its beginning only")
        self._read_on(left)
        return self._file.tell()

    def sha256(self) -> str:
        """Read the rest of the file, and return the hexadecimal SHA-256 of all of it."""
        self._read_on(None)
        return self._digest.hexdigest()

    def _read_on(self, left: int | None) -> None:
        while left is None or left > 0:
            piece = self._file.read(1 << 20 if left is None else min(left, 1 << 20))
            if not piece:
                return
            self._digest.update(piece)
            left = None if left is None else left - len(piece)
