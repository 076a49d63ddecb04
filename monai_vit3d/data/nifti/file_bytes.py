"""Read the bytes of an image file, plain or gzip; check sizes before memory is allocated, and checksums to the end."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.files import HashedFile
from monai_vit3d.data.formats import unknown_name
from monai_vit3d.data.volume import Array

from .gzip_io import CHUNK, GzipReader

NIFTI_SUFFIXES = (".nii", ".nii.gz")
GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_LIMIT = 1032  # deflate cannot inflate more: 258 bytes from two bits
AGAIN = "Copy, download or export it again."


def refusal(path: str | Path, problem: str, advice: str) -> ImageError:
    """Word an error: the file, what came and what is expected, what to do."""
    return ImageError(f"{path}: {problem}. {advice}")


@contextmanager
def open_stream(path: str | Path, hashed: bool = False, suffixes: tuple[str, ...] = NIFTI_SUFFIXES) -> Iterator[Stream]:
    """Open a file for reading, gzip or not.

    Args:
        path: the file.
        hashed: whether to compute its SHA-256.
        suffixes: that its name may have, lower-case.

    Raises:
        ImageError: another format by its name, or a file that cannot be read.
    """
    path = Path(path)
    if not path.name.lower().endswith(suffixes):
        raise unknown_name(path)
    with reworded(path):
        check_file(path)
        file = path.open("rb")
    with file:
        yield Stream(path, file, hashed)


class Stream:
    """The bytes of one file, inflated if its first two bytes are those of gzip.

    Args:
        path: its name, for messages.
        file: opened for reading at its beginning.
        hashed: whether the bytes that are read are hashed on the way.

    Attributes:
        hashed: whether the bytes that are read are hashed.
        packed: whether it is gzip.
        size: bytes on disk.
        warnings: a sentence for each oddity so far.
    """

    def __init__(self, path: Path, file: BinaryIO, hashed: bool = False) -> None:
        with reworded(path):
            self.size = os.fstat(file.fileno()).st_size
            self.packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
        self.path, self.hashed, self.warnings = path, hashed, list[str]()
        self._hashed = HashedFile(file) if hashed else None
        stored: Any = self._hashed or file
        self._stored = stored
        self._file: Any = GzipReader(self._stored) if self.packed else self._stored
        self._at = 0
        if self.packed != path.name.lower().endswith((".gz", ".mgz")):
            self.warnings.append(f"read as {'gzip' if self.packed else 'not compressed'}, whatever its name says")

    def peek(self, count: int) -> bytes:
        """Return the first ``count`` bytes of the file as they are stored; only before anything else is read."""
        with reworded(self.path):
            head: bytes = self._stored.read(count)
            self._stored.seek(0)
        return head

    def read(self, count: int) -> bytes:
        """Read the next ``count`` bytes, or all that are left."""
        with reworded(self.path):
            piece: bytes = self._file.read(count)
        self._at += len(piece)
        return piece

    def sha256(self) -> tuple[str, ...]:
        """Return the hexadecimal SHA-256 of the bytes that were read; empty if they were not hashed."""
        if self._hashed is None:
            return ()
        with reworded(self.path):
            return (self._hashed.sha256(),)

    def check_size(self, declared: int) -> None:
        """Make sure that the file can hold what its header declares.

        Args:
            declared: bytes from the beginning to the end of the voxels.

        Raises:
            ImageError: it cannot.
        """
        if self.packed and declared > DEFLATE_LIMIT * self.size + CHUNK:
            problem = f"the header declares {declared} bytes, more than {self.size} compressed bytes can hold"
            raise refusal(self.path, f"{problem}; it is cut off, or its header is damaged", AGAIN)
        if not self.packed and declared > self.size:
            raise self._short(self.size, declared)

    def block(self, start: int, length: int, declared: int, footer: bool = False) -> Array:
        """Read one run of bytes, and then the rest of the stream, so that its checksums are verified.

        Args:
            start: where the run begins, not before the bytes that were read already.
            length: bytes of the run.
            declared: bytes from the beginning of the stream to the end of the voxels.
            footer: whether the format has more after the voxels, so that it is not worth a warning.

        Returns:
            ``(length,)`` uint8, the only copy.

        Raises:
            ImageError: truncated, damaged, or followed by more than belongs to it.
        """
        self.check_size(declared)
        self._skip_to(start, declared)
        block = np.empty(length, np.uint8)
        view = memoryview(block)  # type: ignore[arg-type]  # numpy's arrays are buffers
        with reworded(self.path):
            # in pieces: a gzip reader makes a copy of what it is asked for
            for first in range(0, length, CHUNK):
                self._at += self._file.readinto(view[first : first + CHUNK])
        if self._at < start + length:
            raise self._short(self._at, declared)
        self._skip_to(declared, declared)
        self._finish(declared, footer)
        return block

    def inflated(self, start: int, length: int, wbits: int) -> bytes:
        """Inflate what follows a plain header, to the end of the file; checksums are verified.

        Args:
            start: where the compressed bytes begin.
            length: bytes when inflated.
            wbits: as of ``zlib``.

        Raises:
            ImageError: truncated, damaged, or more or less than ``length``.
        """
        packed = self.block(start, self.size - start, self.size)
        inflater = zlib.decompressobj(wbits)
        try:
            content = inflater.decompress(packed.data, length + 1)
        except zlib.error as error:
            raise refusal(self.path, f"the compressed voxels are damaged ({error})", AGAIN) from error
        # zlib verifies a stream's checksum at its end only
        if len(content) != length or not inflater.eof:
            problem = f"the compressed voxels are cut off, or not the {length} bytes that the header declares"
            raise refusal(self.path, problem, AGAIN)
        if inflater.unused_data:
            self.warnings.append(f"{len(inflater.unused_data)} bytes after the voxels were passed over")
        return content

    def _skip_to(self, position: int, declared: int) -> None:
        if not self.packed:
            self._file.seek(position)
            self._at = position
            return
        while self._at < position:
            if not self.read(min(CHUNK, position - self._at)):
                raise self._short(self._at, declared)

    def _finish(self, declared: int, footer: bool) -> None:
        """Read to the end, keeping nothing."""
        if not self.packed:
            after = self.size - declared
        else:
            while self._at - declared <= max(CHUNK, declared) and self.read(CHUNK):
                pass
            after = self._at - declared
            if after > max(CHUNK, declared):
                problem = f"over {after} bytes follow the {declared} that the header declares"
                raise refusal(self.path, f"{problem}; this is no image, or its header is damaged", AGAIN)
        if after and not footer:
            self.warnings.append(f"{after} bytes after the voxels were passed over")

    def _short(self, held: int, declared: int) -> ImageError:
        return refusal(self.path, f"truncated: {held} bytes; its header declares {declared}", AGAIN)


def describe_content(head: bytes) -> tuple[str, str] | None:
    """Recognise a file that is not NIfTI by its first bytes, and say what to do; None for unknown content.

    Args:
        head: the first bytes, inflated; 132 or more are enough for all kinds.
    """
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page or XML, not an image", "The download brought an error page: log in and fetch it again."
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself", "Fetch the image with git lfs pull."
    if b"/annex/objects/" in head:
        return "a git-annex pointer, not the image itself", "Fetch the image with datalad get or git annex get."
    if head[128:132] == b"DICM":
        return "DICOM; expected NIfTI", "Convert the series with dcm2niix."
    if head.startswith(b"NRRD"):
        return "NRRD; expected NIfTI", "Convert it with 3D Slicer or SimpleITK."
    if head.startswith((b"PK\x03\x04", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")):
        return "an archive that is not gzip", "Unpack it, and give the .nii in it."
    if head.startswith(GZIP_MAGIC):
        return "compressed twice", "Run gunzip on it once."
    if head and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "text, not an image", AGAIN
    return None


@contextmanager
def reworded(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into the package's own."""
    try:
        yield
    except EOFError as error:
        raise refusal(path, "truncated: the gzip stream is cut off", AGAIN) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        is_trailing = str(error).startswith("Not a gzipped file")  # its beginning was gzip
        trailing = "bytes that are not gzip follow the gzip stream"
        raise refusal(path, trailing if is_trailing else f"the gzip stream is damaged ({error})", AGAIN) from error
    except PermissionError as error:
        raise refusal(path, "no permission to read it", "Ask its owner, or change its permissions.") from error
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})", "Check the disk and the name.") from error


def check_file(path: Path) -> None:
    """Refuse all but regular files that are not empty, without opening them: a pipe would wait for ever."""
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        advice = "Fetch it with datalad get." if "annex" in target else "Fix the link, or mount the disk it leads to."
        raise refusal(path, f"a link to {target}, which is not there", advice)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refusal(path, "no such file", "Check the name, and that its disk is mounted.") from error
    if stat.S_ISDIR(status.st_mode):
        raise refusal(path, "a folder; expected one file", "Give the .nii or .nii.gz file, which may lie in it.")
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, "a device or pipe; expected a file", "Save the image to a file first.")
    if not status.st_size:
        raise refusal(path, "empty, 0 bytes", AGAIN)
