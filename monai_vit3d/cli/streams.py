"""Standard output and error of the command: nothing raw reaches a terminal, and a reader that has gone ends no run."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

from ..data.printable import printable

# a reader that went away is no error: head, a closed terminal
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class Terminated(BaseException):
    """SIGTERM or SIGHUP came; raised in the main thread, so that all is cleaned up on the way out.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class EscapedStream:
    """A text stream that shows control characters as escapes, and takes in what nobody reads any more.

    Python's warnings, other libraries' logs and argparse write here too, with names and header texts as they are.

    Args:
        raw: what is written to; a progress bar may use it as it is.

    Attributes:
        lost: why something could not be written, if not for want of a reader.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text; only its line breaks and tabs stay."""
        self._tried(self.raw.write, "".join(c if c in "\n\t" else printable(c) for c in text))
        return len(text)

    def flush(self) -> None:
        """Flush what is held back."""
        self._tried(self.raw.flush)

    def __getattr__(self, name: str) -> Any:
        """Whatever else a text stream has: encoding, isatty, fileno."""
        return getattr(self.raw, name)

    def _tried(self, function: Any, *args: str) -> None:
        try:
            function(*args)
        except OSError as error:
            if error.errno not in _GONE:
                self.lost = self.lost or error
            # what is held back goes there, too: else each later flush would fail anew
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.raw.fileno())
            os.close(nowhere)


def guard_streams() -> None:
    """Make standard output and error :class:`EscapedStream`; where one was closed, open the null device in its place.

    A number that is free is given to the next file that is opened: with 2 closed, a library's complaint would be
    written into an image.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        if hasattr(raw, "reconfigure"):
            raw.reconfigure(errors="backslashreplace")  # of names that the terminal's encoding has no letters for
        setattr(sys, name, EscapedStream(raw))


def raise_on_signals() -> None:
    """Let SIGTERM and SIGHUP, unless they are ignored as under nohup, raise :class:`Terminated` once."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]

    def terminate(number: int, frame: FrameType | None) -> None:
        for one in handled:
            signal.signal(one, signal.SIG_IGN)  # cleaning up is under way
        raise Terminated(number)

    for number in handled:
        signal.signal(number, terminate)
