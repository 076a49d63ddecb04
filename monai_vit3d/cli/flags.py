"""Replace the Python arguments that errors name by the command's flags.

Errors and warnings name arguments as ``volume=2``, ``anyway=True`` or, without a value, ``take=``. The parser of the
verb knows which flag stands for each, so there is no other table.
"""

from __future__ import annotations

import argparse
import re

_rules: list[tuple[re.Pattern[str], str]] = []


def use_flags_of(verb: argparse.ArgumentParser) -> None:
    """Let :func:`with_flags` write the flags of a verb.

    Args:
        verb: its parser; each of its arguments is stored under the name that the Python function has for it.
    """
    switches, valued = [], []
    for action in verb._actions:
        if not action.option_strings or action.help is argparse.SUPPRESS:  # the latter is an older name of another
            continue
        flag, name = action.option_strings[-1], rf"(?<![\w./-]){re.escape(action.dest)}="
        if action.nargs == 0:
            switches.append((re.compile(name + re.escape(repr(getattr(action, "const", None))) + r"(?!\w)"), flag))
        else:
            valued += [(re.compile(name + r"(?=[\s.,;:)]|$)"), flag), (re.compile(name), f"{flag} ")]
    _rules[:] = [*switches, *valued]


def with_flags(text: str) -> str:
    """Replace the arguments that an error or a warning names by the verb's flags."""
    for pattern, replacement in _rules:
        text = pattern.sub(replacement, text)
    return text
