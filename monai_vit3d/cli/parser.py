"""A parser whose errors are one line: what came or is missing, what is expected, and an example."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from monai_vit3d.data.nearest import did_you_mean


class OneLineParser(argparse.ArgumentParser):
    """Parse as ``argparse.ArgumentParser``; an error is one line with what to write, and no usage before it."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and remember the words that came for messages."""
        self.words = [*(sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print what came, what is expected and what to do, and exit with code 2."""
        verb, words = self, self.words
        while words and words[0] in _verbs(verb):
            verb, words = _verbs(verb)[words[0]], words[1:]
        flags = [*verb._option_string_actions, *self._option_string_actions]
        given = [word.partition("=")[0] for word in words if word.startswith("--")]
        unknown = next((word for word in given if not any(flag.startswith(word) for flag in flags)), None)
        if unknown is not None:
            text = f"{unknown} is no flag of it.{did_you_mean(unknown, flags)}"
        elif _verbs(verb) and words:
            text = f"{words[0]} is no verb.{did_you_mean(words[0], _verbs(verb))} Expected {_one_of(_verbs(verb))}."
        else:
            text = with_meaning(message, verb)
        self.exit(2, f"{verb.prog}: {text} {verb.prog} --help says more.\n")


def _verbs(parser: argparse.ArgumentParser) -> Mapping[str, OneLineParser]:
    return next((action.choices for action in parser._actions if isinstance(action.choices, Mapping)), {})


def with_meaning(message: str, verb: argparse.ArgumentParser) -> str:
    """Say argparse's message by what a verb's help has of the arguments that it names.

    Args:
        message: argparse's.
        verb: the parser whose arguments it names.
    """
    named = {argparse._get_action_name(action): action for action in verb._actions}
    if "arguments are required: " in message:
        missing = [_described(named[name]) for name in message.partition(": ")[2].split(", ") if name in named]
        return f"missing: {'; '.join(missing)}. For example: {_example(verb)}."
    if misfit := re.fullmatch(r"argument (.+?): (invalid \w+ value: (?P<value>.*)|expected .*arguments?)", message):
        came = misfit["value"] or "no value"
        return f"{misfit[1]}: {came} came; expected {_described(named[misfit[1]])}."
    if left_over := re.fullmatch(r"unrecognized arguments: (.*)", message):
        return f"{left_over[1]}: more than it takes. For example: {_example(verb)}."
    return f"{message.removeprefix('argument ')}."


def _described(action: argparse.Action) -> str:
    """Format an argument as it is written, with its meaning."""
    meaning = _one_of(action.choices) if isinstance(action.choices, Mapping) else action.help
    flag = action.option_strings[0] if action.option_strings else None
    name = None if action.nargs == 0 else str(action.metavar or action.dest.upper())
    return f"{' '.join(filter(None, (flag, name)))} ({meaning})"


def _one_of(verbs: Mapping[str, Any]) -> str:
    return f"one of {', '.join(verbs)}"


def _example(verb: argparse.ArgumentParser) -> str:
    return (verb.epilog or "").splitlines()[1].strip()
