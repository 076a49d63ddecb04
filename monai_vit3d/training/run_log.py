"""Keep the log of a training in its run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MONAI = "monai."  # not monai_vit3d, which logs as Python's libraries should
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append everything that is logged, and Python's warnings, to a file within the ``with`` block.

    Args:
        path: the file; its folder is created if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    level, handler = root.level, logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


@contextmanager
def without_own_streams() -> Iterator[None]:
    """Let MONAI's loggers, which print to standard output themselves, log as all others within the ``with`` block."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(_MONAI)]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
