"""Tell how far the windows of a volume are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OnWindow = Callable[[int, int], None]  # is given how many windows of a volume are done, and of how many
_listener: ContextVar[OnWindow | None] = ContextVar("listener", default=None)


@contextmanager
def following_windows(on_window: OnWindow | None) -> Iterator[None]:
    """Call a function after each batch of windows, of what this thread runs within the ``with`` block.

    Args:
        on_window: the function; None is told nothing.
    """
    token = _listener.set(on_window)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_windows(done: int, total: int) -> None:
    """Tell who follows that windows are done; of an input that is one window nothing is told."""
    listener = _listener.get()
    if listener is not None and total > 1:
        listener(done, total)
