"""The C library's allocator, told to keep large blocks: on virtual machines each new page costs a fault."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# malloc.h of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_large_blocks() -> bool:
    """Let freed blocks of any size be used again by this process, instead of going back to the kernel.

    It holds for the whole process, so only the command does it, never an import. Where the C library is not glibc,
    nothing happens.

    Returns:
        Whether it was done.
    """
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # another library's mallopt has other numbers
        return all(libc.mallopt(*pair) for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)))
    return False
