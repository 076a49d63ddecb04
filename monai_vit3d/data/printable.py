"""Make texts from files and names safe to print in a terminal, a page or a table."""

from __future__ import annotations

from unicodedata import category

# control, invisible (among them those that turn the direction of writing), half a character, private, unknown, and
# other line breaks than \n
_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text: object) -> str:
    """Write a text on one line that any terminal can print.

    Control characters, those that change the direction of writing, other invisible ones and bytes that are no UTF-8
    become escapes.

    Args:
        text: a path, a name, a message.
    """
    line = str(text)
    if line.isprintable():  # none of these, as of most texts; those of pages hold pictures, and are long
        return line
    return "".join(c.encode("unicode_escape").decode() if category(c) in _ESCAPED else c for c in line)


def excerpt(text: object, longest: int = 1000) -> str:
    """Write a text of any length on one short line, for a message: as :func:`printable`, cut in its middle.

    Args:
        text: what a message quotes.
        longest: characters that are kept.
    """
    line = printable(text)
    return line if len(line) <= longest else f"{line[: longest // 2]}...{line[-(longest // 2) :]}"
