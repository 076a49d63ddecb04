"""Read and write gzip by ISA-L (https://github.com/pycompression/python-isal) or, without it, the standard library."""

from __future__ import annotations

import gzip
from typing import IO, Any, BinaryIO

igzip: Any
isal_zlib: Any
try:
    from isal import igzip, isal_zlib
except ImportError:  # no wheel for this platform
    igzip = isal_zlib = None

CHUNK = 2**20  # bytes
# The fastest of zlib. ISA-L's files of this level beside zlib's, by benchmarks/saving.py: labels 5 % smaller, noise 2 %
# and probabilities around a ball 4 % larger (7 % to 9 % for smaller balls). Regular floats fare worst: a ramp's file is
# 2.4 times as large.
_LEVEL = 1


class GzipReader:
    """Inflate a gzip file of one or more members, and check each against its CRC-32 and length.

    If ISA-L finds a fault, the standard library reads the file again and decides: the same files are refused in the
    same words, whichever is installed.

    Args:
        file: opened for reading at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, 0
        self._packed: Any = (igzip or gzip).GzipFile(fileobj=file, mode="rb")
        self._faults: tuple[type[BaseException], ...] = ()
        if igzip:
            self._faults = (EOFError, gzip.BadGzipFile, isal_zlib.error)

    def read(self, count: int) -> bytes:
        """Read the next ``count`` bytes, or all that are left; errors as of :meth:`readinto`."""
        piece = bytearray(count)
        return bytes(piece[: self.readinto(memoryview(piece))])

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer with the next bytes, and return their number; they are copied once on the way.

        Raises:
            EOFError: the file is cut off.
            gzip.BadGzipFile: a checksum or length is wrong, or bytes that are not gzip follow.
            zlib.error: damaged.
        """
        try:
            count = self._packed.readinto(view)
        except self._faults:
            self._packed, self._faults = self._standard_reader(), ()
            count = self._packed.readinto(view)
        self._at += count
        return int(count)

    def _standard_reader(self) -> gzip.GzipFile:
        """Open the standard library's reader at the current position."""
        self._file.seek(0)
        packed, left = gzip.GzipFile(fileobj=self._file, mode="rb"), self._at
        while left and (piece := packed.read(min(CHUNK, left))):
            left -= len(piece)
        return packed


def gzip_writer(file: IO[bytes]) -> Any:
    """Open a gzip file to write to, without time and name in it: the same writes give the same bytes by one library.

    Args:
        file: opened for writing; it stays open.
    """
    return (igzip or gzip).GzipFile("", "wb", compresslevel=_LEVEL, fileobj=file, mtime=0)
