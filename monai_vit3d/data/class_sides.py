"""Find pairs of classes that differ by their side of the body only: they must not be mirrored into each other."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIDES = {
    **dict.fromkeys(("left", "l", "lh", "lt"), "left"),
    **dict.fromkeys(("right", "r", "rh", "rt"), "right"),
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")  # LeftKidney, kidney_L, ctx-lh-cuneus
_JOINED = re.compile(r"(left|right)(?=\w)|(?<=\w)(left|right)", re.IGNORECASE)  # leftkidney


def name_words(name: str) -> list[str]:
    """Split a class name into words in small letters: LeftKidney, kidney_L, ctx-lh-cuneus, leftkidney."""
    return [word.lower() for word in _WORD.findall(_JOINED.sub(r" \1\2 ", name))]


def left_right_pairs(names: Sequence[str]) -> list[list[str]]:
    """List ``[left, right]`` for each two names that are one but for left and right, l and r, lh and rh, lt and rt.

    Args:
        names: of classes.
    """
    places: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = name_words(name)
        for index, word in enumerate(words):
            if side := _SIDES.get(word):
                rest = (*words[:index], "", *words[index + 1 :])
                places.setdefault(rest, {}).setdefault(side, name)
    return [[pair["left"], pair["right"]] for pair in places.values() if len(pair) == 2]
