"""Say which of the known names was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ask for the nearest of the known names, as a sentence after a blank; "" if none is near.

    Args:
        word: what came.
        known: what is there.
    """
    near = difflib.get_close_matches(word, [*known], 1)
    return f" Did you mean {near[0]}?" if near else ""
