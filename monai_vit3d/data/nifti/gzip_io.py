"""gzip by ISA-L (https://github.com/pycompression/python-isal) where it is installed, else by the standard library."""

from __future__ import annotations

import gzip
from typing import Any, BinaryIO

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
    """The inflated bytes of a gzip file of one or more members, each checked against its CRC-32 and length.

    Where ISA-L finds a fault, the standard library reads the file anew and has the last word: the same files are
    refused in the same words, whichever is installed.

    Args:
        file: opened for reading at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, 0
        self._packed: Any = (igzip or gzip).GzipFile(fileobj=file, mode="rb")
        self._violations = (EOFError, gzip.BadGzipFile, isal_zlib.error) if igzip else ()

    def read(self, count: int) -> bytes:
        """The next bytes, ``count`` of them or all that are left; errors as of :meth:`readinto`."""
        piece = bytearray(count)
        return bytes(piece[: self.readinto(memoryview(piece))])

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer as far as there are bytes, and say how many; a copy of them is made on the way.

        Raises:
            EOFError: the file is cut off.
            gzip.BadGzipFile: a checksum or length is wrong, or what follows is no gzip.
            zlib.error: damaged.
        """
        try:
            count = self._packed.readinto(view)
        except self._violations:
            self._packed, self._violations = self._standard(), ()
            count = self._packed.readinto(view)
        self._at += count
        return int(count)

    def _standard(self) -> gzip.GzipFile:
        """The standard library's reader, as far as this one came."""
        self._file.seek(0)
        packed, left = gzip.GzipFile(fileobj=self._file, mode="rb"), self._at
        while left and (piece := packed.read(min(CHUNK, left))):
            left -= len(piece)
        return packed


def gzip_writer(file: BinaryIO) -> gzip.GzipFile:
    """A gzip file to write to, without a time and a name in it: the same writes give the same bytes by one library.

    Args:
        file: opened for writing; it stays open.
    """
    return (igzip or gzip).GzipFile("", "wb", compresslevel=_LEVEL, fileobj=file, mtime=0)
