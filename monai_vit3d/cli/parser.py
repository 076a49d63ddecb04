"""A parser whose messages say which verb or flag was meant."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn


class SuggestingParser(argparse.ArgumentParser):
    """Parse as ``argparse.ArgumentParser``, and add the nearest verb or flag to messages on misspelt ones."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and remember the words that came for messages."""
        self.words = [*(sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message with what may have been meant, and exit with code 2."""
        verbs = next((action.choices for action in self._actions if isinstance(action.choices, Mapping)), {})
        parser = verbs.get(self.words[0], self) if self.words else self
        flags = [*parser._option_string_actions, *self._option_string_actions]
        unknown = [word.partition("=")[0] for word in self.words if word.startswith("--")]
        meant = [_meant(word, flags) for word in unknown if not any(flag.startswith(word) for flag in flags)]
        if verbs and self.words and self.words[0] not in verbs and not unknown:
            meant = [_meant(self.words[0], verbs)]
        super().error(" ".join([message, *filter(None, meant)]))


def _meant(word: str, known: Iterable[str]) -> str:
    """Format a question for the nearest of the known words; "" if none is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"(did you mean {near[0]}?)" if near else ""
