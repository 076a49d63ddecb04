"""What the command says, and where: ``-q``, ``-v`` and ``--log-file`` of every verb, by the levels of logging."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from monai_vit3d.data.printable import printable

from .flags import with_flags

VERBOSITY = ("quiet", "verbose", "log_file")  # names of the arguments
command_log = logging.getLogger("vit3d.command")  # what the command says itself
_package_log = logging.getLogger("monai_vit3d")
_python_log = logging.getLogger("py.warnings")


class LineFormatter(logging.Formatter):
    """Format log lines with flags in place of arguments, and what cannot be printed as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; line breaks within it stay, as of a traceback."""
        return "\n".join(map(printable, with_flags(super().format(record)).rstrip("\n").split("\n")))


class _Screen(logging.Handler):
    """Prints to what is standard error by then."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        print(self.format(record), file=sys.stderr, flush=True)


_screen = _Screen(logging.INFO)
_screen.setFormatter(LineFormatter("%(message)s"))
command_log.addHandler(_screen)
command_log.setLevel(logging.DEBUG)
command_log.propagate = False


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add the flags to the parser of a verb, or to those of its subcommands."""
    ways = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for way in ways[0].choices.values() if ways else ():
        add_verbosity(way)
    if ways:
        return
    group = parser.add_argument_group("messages")
    add = group.add_argument
    add("-q", "--quiet", action="count", default=0, help="no progress and notes; -qq: errors alone")
    add("-v", "--verbose", action="count", default=0, help="details, such as times of stages and tracebacks, too")
    add("--log-file", type=Path, metavar="FILE", help="add all messages to this file, with their times, also with -q")


def is_showing_progress() -> bool:
    """Return whether a bar makes sense: standard error is a terminal, and -q was not given."""
    return sys.stderr.isatty() and _screen.level <= logging.INFO


@contextmanager
def heeding_verbosity(args: argparse.Namespace) -> Iterator[None]:
    """Set what is printed and logged by the flags, within the ``with`` block.

    Args:
        args: of a verb.

    Raises:
        OSError: the log file cannot be written.
    """
    level = min(max(logging.INFO + 10 * (args.quiet - args.verbose), logging.DEBUG), logging.ERROR)
    in_file = level if args.log_file is None else min(level, logging.INFO)
    with ExitStack() as undo:
        if args.log_file is not None:
            file = _file_handler(args.log_file, in_file)
            undo.callback(file.close)
            for log in (command_log, _package_log, _python_log):
                _attach(log, file, undo)
        if args.log_file is not None or level > logging.WARNING:  # else Python prints its warnings itself
            logging.captureWarnings(True)
            undo.callback(logging.captureWarnings, False)
            _attach(_python_log, _screen, undo)
        for printing in (_screen, *(h for h in _package_log.handlers if not isinstance(h, logging.FileHandler))):
            _set_level(printing, level, undo)
        if args.quiet or args.verbose or args.log_file is not None:
            _set_level(_package_log, in_file, undo)
        yield


def _file_handler(path: Path, level: int) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    file.setLevel(level)
    return file


def _attach(log: logging.Logger, handler: logging.Handler, undo: ExitStack) -> None:
    log.addHandler(handler)
    undo.callback(log.removeHandler, handler)


def _set_level(of: logging.Logger | logging.Handler, level: int, undo: ExitStack) -> None:
    undo.callback(of.setLevel, of.level)
    of.setLevel(level)
