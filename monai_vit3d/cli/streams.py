"""Guard the command's standard streams and signals: control characters are escaped, a closed pipe ends no run."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

from monai_vit3d.data.printable import printable

# a reader that went away is no error: head, a closed terminal
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class Terminated(BaseException):
    """Raised in the main thread when SIGTERM or SIGHUP comes, so that everything is cleaned up.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class EscapedStream:
    """A text stream that escapes control characters, and discards text once its reader has gone.

    Python's warnings, other libraries' logs and argparse write here too, with names and header texts as they are.

    Args:
        raw: the stream to write to; a progress bar may use it directly.

    Attributes:
        lost: the error if something could not be written although there was a reader.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text; only its line breaks and tabs stay."""
        self._tried(self.raw.write, "".join(c if c in "\n\t" else printable(c) for c in text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._tried(self.raw.flush)

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the raw stream: encoding, isatty, fileno."""
        return getattr(self.raw, name)

    def _tried(self, function: Any, *args: str) -> None:
        try:
            function(*args)
        except OSError as error:
            if error.errno not in _GONE:
                self.lost = self.lost or error
            # buffered text goes there, too: else each later flush would fail again
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
